"""Whether a refusal names a field that there is: by the contract's descriptors, from the request.

A path goes by the names of fields, joined by dots. In a repeated message it names an entry by its
place, `images[0].data`, or by what tells it apart, `components_to_quantize.vae.quant_type`.
"""

from __future__ import annotations

import re

from google.protobuf.descriptor import Descriptor

from ditcast.v1 import acceleration_pb2
from ditcast.v1 import diffusion_service_pb2 as pb

_PART = re.compile(r"(?P<name>[a-z0-9_]+)(?P<place>\[\d+\])?")
_CUT = "..."
"""What a path ends with that is too long for a status."""

_CONFIGURATION = acceleration_pb2.Configuration.DESCRIPTOR


def exists(path: str, request: Descriptor) -> bool:
    """Say whether a request has this path; a change's paths begin within its configuration."""
    roots = [request]
    if request is pb.ConfigureRequest.DESCRIPTOR:
        roots.append(_CONFIGURATION)
    inside = path.removeprefix("configuration.")
    if inside != path:
        # What a request cannot do under the configuration in force.
        return _is_path(inside, _CONFIGURATION)
    return any(_is_path(path, root) for root in roots)


def _is_path(path: str, message: Descriptor) -> bool:
    whole = not path.endswith(_CUT)
    here: Descriptor | None = message
    parts = path.removesuffix(_CUT).split(".")
    for index, text in enumerate(parts):
        found = _PART.fullmatch(text)
        field = here.fields_by_name.get(found["name"]) if here and found else None
        if found is None or field is None:
            # The last part of a path that was cut off.
            return not whole and index == len(parts) - 1 and index > 0
        if found["place"] and not field.is_repeated:
            return False
        here = field.message_type
        if here is not None and here.full_name == "google.protobuf.Struct":
            return True  # Its keys may hold anything, dots too.
        if field.is_repeated and here is not None and not found["place"]:
            return True  # What follows names an entry, by a text of the caller's.
    return True
