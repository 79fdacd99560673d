"""Hypothesis strategies of requests, built from the descriptors of the contract.

Any field may hold anything that its type can carry: what is likely to be meant, extremes, NaN,
numbers that no enum knows, huge texts, paths and URLs, Structs within Structs.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from PIL import Image

from ditcast.v1 import acceleration_pb2
from ditcast.v1 import diffusion_service_pb2 as pb

if TYPE_CHECKING:  # The same class at run time; the types know two.
    from google._upb._message import FieldDescriptor as UpbFieldDescriptor

Field: TypeAlias = "FieldDescriptor | UpbFieldDescriptor"
Draw: TypeAlias = Callable[["st.SearchStrategy[Any]"], Any]

METHODS: Mapping[str, MethodDescriptor] = pb.DESCRIPTOR.services_by_name[
    "DiffusionService"
].methods_by_name

_DEPTH = 5
"""Messages within messages; what is set deeper stays empty."""
_ENTRIES = 3
_COUNTS = st.sampled_from((1, 1, 2, 4))
"""Fields of a message that are set, at most: the more, the less likely is a sound request."""
_FEW = st.integers(0, _ENTRIES)
_MANY = st.sampled_from((0, 1, 2, 8, 33, 1001))

HOSTILE_TEXTS = (
    "",
    " ",
    "\x00",
    "a\r\ngrpc-status: 0\r\n",
    "%s%n{}{0.__class__}",
    "__class__",
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x.png",
    "hf://owner/name",
    "data:image/png;base64,AAAA",
    "\u202egnp.exe",
    "\U0001f6b2" * 40,
    "é" * 9_000,
    "x" * 129,
    "x" * 20_000,
    "x" * 300_000,
)

_DOUBLES = (0.0, -0.0, 0.08, 0.5, 1.0, 4.0, -1.0, 1e-320, 1e308, 2.0**53 + 2)
_NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))
_INTEGERS = (-1, 0, 1, 2, 3, 8, 16, 17, 50, 64, 100, 1000, 1001, 4096, 4112)


def _png(mode: str, side: int) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, "PNG")
    return file.getvalue()


PICTURE = _png("RGB", 64)
_PICTURES = (PICTURE, _png("L", 64), _png("RGBA", 16))

_ARGUMENTS = (
    *("max_sequence_length", "max_sequence_length", "strength", "strength"),
    *("padding_mask_crop", "attention_kwargs", "prompt_embeds"),
    *("generator", "latents", "image", "callback_on_step_end", "width", "output_type", "sigmas"),
)
_PATHS = tuple(acceleration_pb2.Configuration.DESCRIPTOR.fields_by_name)

LIKELY: Mapping[str, st.SearchStrategy[Any]] = {
    "request_id": st.sampled_from(("a", "b", "c", "d")),
    "page_token": st.sampled_from(("AAAAAAAAAAE", "AAAAAAAAAP8")),
    "paths": st.sampled_from(
        (
            *("*", *_PATHS, "cache.db_cache", "cache.db_cache.fn_compute_blocks", "cache.dmd"),
            *("parallelism.ulysses_degree", "defaults.width", "cache.disabled", "loading.dtype"),
            *("quantize.components_to_quantize", "cache.db_cache.", ".cache", "cache..db_cache"),
        )
    ),
    "parameter": st.sampled_from(("image", "mask_image")),
    "component": st.sampled_from(("transformer", "vae", "text_encoder")),
    "dtype": st.sampled_from(("float32", "bfloat16", "auto")),
    "attention_backend": st.sampled_from(("native", "sage", "flash")),
    "quant_type": st.sampled_from(("float8_per_row", "int8_weight_only")),
    "extra_parallel_modules": st.sampled_from(("vae", "text_encoder", "controlnet")),
    "steps_computation_mask": st.sampled_from((0, 1)),
    "fn_compute_blocks": st.sampled_from((1, 2, 3)),
    "bn_compute_blocks": st.sampled_from((0, 1)),
    "data": st.sampled_from(_PICTURES),
}
"""What a caller is likely to mean, by the name of the field."""


@st.composite
def requests(draw: Draw, method: str, sound: pb.GenerateRequest) -> Message:
    """Give requests of an RPC: often a sound one, with a few fields changed."""
    message = GetMessageClass(METHODS[method].input_type)()
    base = sound if method == "Generate" else SOUND.get(method)
    if base is not None and draw(st.integers(0, 3)):
        message.CopyFrom(base)
    _fill(draw, message, 0)
    return message


SOUND: Mapping[str, Message] = {
    "Configure": pb.ConfigureRequest(configuration=acceleration_pb2.Configuration()),
    "WatchGeneration": pb.WatchGenerationRequest(request_id="a"),
    "CancelGeneration": pb.CancelGenerationRequest(request_id="a"),
    "LoadAdapter": pb.LoadAdapterRequest(name="a", file="adapters/a.safetensors"),
    "UnloadAdapter": pb.UnloadAdapterRequest(name="a"),
    "Tune": pb.TuneRequest(
        generation=pb.GenerateRequest(width=64, height=64, num_inference_steps=2),
        prompts=["x"],
        candidates=[
            acceleration_pb2.CacheConfig(db_cache=acceleration_pb2.DBCache(fn_compute_blocks=1))
        ],
    ),
}
"""Requests that can be, so that one wrong field is not always among ten others."""


def _fill(draw: Draw, message: Message, depth: int) -> None:
    fields = message.DESCRIPTOR.fields_by_name
    if not fields:
        return
    for name in draw(_names(tuple(fields), draw(_COUNTS))):
        _put(draw, message, fields[name], depth)


@functools.cache
def _names(names: tuple[str, ...], most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), max_size=most)


def _put(draw: Draw, message: Message, field: Field, depth: int) -> None:
    """Set a field to something of its type."""
    if _is_map(field):
        _put_entries(draw, message, field, depth)
    elif field.message_type is not None:
        targets = (
            [getattr(message, field.name).add() for _ in range(draw(_FEW))]
            if field.is_repeated
            else [getattr(message, field.name)]
        )
        for target in targets:
            if not field.is_repeated:
                target.SetInParent()
            if depth < _DEPTH:
                _fill(draw, target, depth + 1)
    elif field.is_repeated:
        values = [draw(scalars(field)) for _ in range(draw(_FEW))]
        filler = [draw(scalars(field))] * (draw(_MANY) - len(values))
        getattr(message, field.name).extend(filler + values)
    else:
        setattr(message, field.name, draw(scalars(field)))


def _is_map(field: Field) -> bool:
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def _put_entries(draw: Draw, message: Message, field: Field, depth: int) -> None:
    """Set entries of a map; of a Struct they are likely to be arguments of a pipeline."""
    assert field.message_type is not None
    kinds = field.message_type.fields_by_name
    for key in draw(_KEYS):
        if kinds["value"].message_type is None:
            getattr(message, field.name)[key] = draw(scalars(kinds["value"]))
            continue
        value = getattr(message, field.name)[key]
        if depth < _DEPTH:
            _fill(draw, value, depth + 1)


TEXTS = st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=20)
_KEYS = st.lists(st.sampled_from(_ARGUMENTS) | TEXTS, max_size=_ENTRIES)


@functools.cache
def scalars(field: Field) -> st.SearchStrategy[Any]:
    """Give values of a field that holds no message, and often likely ones."""
    likely = LIKELY.get(field.name)
    anything = _of_type(field)
    return anything if likely is None else likely | likely | anything


def _of_type(field: Field) -> st.SearchStrategy[Any]:  # noqa: PLR0911 (a table)
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return TEXTS
        case FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=200) | st.sampled_from(_PICTURES).flatmap(_spoilt)
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_ENUM:
            assert field.enum_type is not None
            known = [value.number for value in field.enum_type.values]
            return st.sampled_from([*known, *known, -1, len(known), 2**31 - 1, -(2**31)])
        case FieldDescriptor.TYPE_DOUBLE:
            return st.sampled_from((*_DOUBLES, *_NO_NUMBERS)) | st.floats()
        case FieldDescriptor.TYPE_UINT64:
            return _whole(0, 2**64 - 1)
        case FieldDescriptor.TYPE_INT64:
            return _whole(-(2**63), 2**63 - 1)
        case FieldDescriptor.TYPE_INT32:
            return _whole(-(2**31), 2**31 - 1)
    raise TypeError(f"no values are known for {field.full_name}")


def _whole(low: int, high: int) -> st.SearchStrategy[int]:
    usual = [number for number in _INTEGERS if low <= number <= high]
    return st.sampled_from(usual) | st.sampled_from((low, high)) | st.integers(low, high)


def _spoilt(picture: bytes) -> st.SearchStrategy[bytes]:
    """Give a picture that is cut off, or has one byte changed."""

    def spoil(place: int, byte: int) -> bytes:
        if byte > 255:  # No byte: the rest is missing.
            return picture[:place]
        return picture[:place] + bytes([byte]) + picture[place + 1 :]

    return st.builds(spoil, st.integers(0, len(picture) - 1), st.integers(0, 300))
