"""Receipts as files, the request that one stands for, and how it differs from a server.

The file is the contract's message in protobuf's canonical JSON, which keeps every number to its
last digit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast.v1.capabilities_pb2 import Capabilities
from ditcast.v1.diffusion_service_pb2 import Adapter, GenerateRequest
from ditcast.v1.generation_pb2 import (
    AdapterWeight,
    InputImage,
    InputImageDigest,
    InputImageRole,
    Receipt,
)

_SHA256_BYTES: Final = 32
_IF_TAKEN: Final = ("width", "height", "num_inference_steps")
"""Settled for every generation, but only asked for where the pipeline takes them."""
_IF_THERE: Final = (
    *("negative_prompt", "guidance_scale", "true_cfg_scale", "num_frames", "fps"),
    *("pipeline_kwargs", "output", "cache"),
)
_FIXED_AT_THE_LOAD: Final = ("parallelism", "quantize", "attention_backend", "loading")
"""What of a configuration a request cannot bring along."""
_ABSENT: Final = "none"


class UnusableReceipt(ValueError):
    """A file is no receipt, or what was given with it is not what it names."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that a receipt names and a server has otherwise."""

    name: str
    """For instance "world_size" or "library_versions.torch"."""
    receipt: str
    server: str

    def __str__(self) -> str:
        """Say both, in a line."""
        return f"{self.name}: {self.receipt} in the receipt, {self.server} on the server"


def write_receipt(receipt: Receipt, path: str | Path) -> Path:
    """Write a receipt to a file, in place of what was there, and return its path."""
    target = Path(path)
    target.write_text(json_format.MessageToJson(receipt) + "\n", "utf-8")
    return target


def read_receipt(path: str | Path) -> Receipt:
    """Read a receipt from a file.

    Raises:
        UnusableReceipt: The file is none.
        OSError: It cannot be read.
    """
    try:
        receipt = json_format.Parse(Path(path).read_bytes(), Receipt())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as err:
        raise UnusableReceipt(f"{path} is not a receipt: {err}") from err
    missing = [name for name in ("parameters", "outputs", "model_id") if not _has(receipt, name)]
    if missing:
        raise UnusableReceipt(f"{path} is not a whole receipt: it has no {', '.join(missing)}")
    if any(len(output.sha256) != _SHA256_BYTES for output in receipt.outputs):
        raise UnusableReceipt(f"{path} is not a whole receipt: a sha256 has not 32 bytes")
    return receipt


def request_of(
    receipt: Receipt, capabilities: Capabilities, images: Iterable[bytes] = ()
) -> GenerateRequest:
    """Give the request that the receipt stands for.

    Args:
        receipt: What was made.
        capabilities: Of the server: what its pipeline takes.
        images: The input pictures' files, in any order.

    Raises:
        UnusableReceipt: A picture is missing, or is not among those that the receipt names.
    """
    parameters = receipt.parameters
    request = GenerateRequest(
        prompt=parameters.prompt,
        seed=parameters.seed,
        num_images=parameters.num_images,
        sigmas=parameters.sigmas,
        images=_inputs(parameters.images, images),
        adapters=[
            AdapterWeight(name=adapter.name, weight=adapter.weight)
            for adapter in parameters.adapters
        ],
    )
    taken = {parameter.name for parameter in capabilities.parameters}
    for name in _IF_TAKEN:
        if name in taken:
            setattr(request, name, getattr(parameters, name))
    for field, value in parameters.ListFields():
        if field.name not in _IF_THERE:
            continue
        if isinstance(value, Message):
            getattr(request, field.name).CopyFrom(value)
        else:
            setattr(request, field.name, value)
    return request


def differences(
    receipt: Receipt,
    capabilities: Capabilities,
    configuration: Configuration,
    adapters: Sequence[Adapter] = (),
) -> tuple[Difference, ...]:
    """List in what a server differs from what made the receipt, as far as bytes may depend on it.

    Cache settings and defaults are not among it: a replay brings its own.

    Args:
        receipt: What was made.
        capabilities: Of the server.
        configuration: The one in force there.
        adapters: Those that are loaded there.
    """
    wanted, found = dict(_of_receipt(receipt)), dict(_of_server(capabilities, configuration))
    loaded = {adapter.name: adapter.weights_digest for adapter in adapters}
    for used in receipt.parameters.adapters:
        name = f"adapters.{used.name}.weights_digest"
        wanted[name], found[name] = used.weights_digest, loaded.get(used.name, _ABSENT)
    names = dict.fromkeys([*wanted, *found])
    pairs = ((name, wanted.get(name, _ABSENT), found.get(name, _ABSENT)) for name in names)
    return tuple(Difference(*pair) for pair in pairs if pair[1] != pair[2])


def _has(receipt: Receipt, name: str) -> bool:
    return any(field.name == name for field, _ in receipt.ListFields())


def _of_receipt(receipt: Receipt) -> Iterator[tuple[str, str]]:
    yield "model_id", receipt.model_id
    yield "model_revision", receipt.model_revision or _ABSENT
    yield "weights_digest", receipt.weights_digest
    yield "world_size", str(receipt.world_size)
    yield "threads_per_rank", str(receipt.threads_per_rank)
    yield "device", receipt.device
    yield "dtype", receipt.dtype
    yield from _versions(receipt.library_versions.items())
    yield from _settings(receipt.configuration)


def _of_server(
    capabilities: Capabilities, configuration: Configuration
) -> Iterator[tuple[str, str]]:
    model = capabilities.model
    yield "model_id", model.id
    yield "model_revision", model.revision or _ABSENT
    yield "weights_digest", model.weights_digest
    yield "world_size", str(capabilities.world_size)
    yield "threads_per_rank", str(capabilities.threads_per_rank)
    yield "device", capabilities.device
    yield "dtype", model.dtype
    yield from _versions(capabilities.library_versions.items())
    yield from _settings(configuration)


def _versions(versions: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for package, version in sorted(versions):
        yield f"library_versions.{package}", version


def _settings(configuration: Configuration) -> Iterator[tuple[str, str]]:
    fields = json_format.MessageToDict(configuration, preserving_proto_field_name=True)
    for name in _FIXED_AT_THE_LOAD:
        if name in fields:
            yield from _flat(f"configuration.{name}", fields[name])


def _flat(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in sorted(value.items()):
            yield from _flat(f"{path}.{key}", inner)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _inputs(named: Sequence[InputImageDigest], images: Iterable[bytes]) -> list[InputImage]:
    """Put the given pictures into the order of the receipt, told apart by their content."""
    given = {hashlib.sha256(data).digest(): data for data in images}
    wanted = {digest.sha256 for digest in named}
    problems = [
        f"input picture {place} ({_role(digest)}) is not given: sha256 {digest.sha256.hex()}, "
        f"{digest.size_bytes} bytes"
        for place, digest in enumerate(named)
        if digest.sha256 not in given
    ]
    problems += [
        f"a picture that is given is none of the receipt's: sha256 {sha256.hex()}"
        for sha256 in given
        if sha256 not in wanted
    ]
    if problems:
        raise UnusableReceipt("; ".join(problems))
    return [
        InputImage(data=given[digest.sha256], role=digest.role, parameter=digest.parameter)
        for digest in named
    ]


def _role(digest: InputImageDigest) -> str:
    return InputImageRole.Name(digest.role).removeprefix("INPUT_IMAGE_ROLE_").lower()
