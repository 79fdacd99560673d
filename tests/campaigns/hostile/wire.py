"""Requests as bytes: mutated, with fields that nobody knows, kept cheap where they are sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from tests.campaigns.hostile.messages import METHODS, Draw, requests

from ditcast.v1 import diffusion_service_pb2 as pb

MOST_PIXELS = 64 * 64
MOST_STEPS = 2
MOST_GENERATIONS = 4

_UNKNOWN_FIELDS = (
    b"\xf8\xff\x07\x01",  # A number under 16383 << 3.
    b"\xfa\xff\x07\x03abc",  # Bytes.
    b"\xfb\xff\x07\xfc\xff\x07",  # An empty group.
    b"\xf9\xff\x07" + bytes(8),
)
_BROKEN_FIELDS = (
    b"\x12\x02\xff\xfe",  # The second field as a text that is no UTF-8.
    b"\x12\xff\xff\xff\xff\x0f",  # A length beyond the end.
    b"\x07",  # A wire type that is none.
    b"\x00",
    b"\xff" * 11,
    b"\x0b" * 200,  # Groups in groups.
    b"\x6a\x7f",
)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request on the wire."""

    method: str
    data: bytes

    @property
    def message(self) -> Message | None:
        """What the server reads; None where the bytes are no message."""
        try:
            return GetMessageClass(METHODS[self.method].input_type).FromString(self.data)
        except DecodeError:
            return None

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return METHODS[self.method].server_streaming


WEIGHTS = {"Generate": 8, "Configure": 5}
"""How often an RPC is called, in comparison; 1 for the others."""


_CALLED = st.sampled_from([name for name in METHODS for _ in range(WEIGHTS.get(name, 1))])


@st.composite
def sent(draw: Draw, sound: pb.GenerateRequest) -> Sent:
    """Give requests of all RPCs: one in five with bytes that no client would have written."""
    method = draw(_CALLED)
    data = draw(requests(method, sound)).SerializeToString()
    if draw(st.integers(0, 4)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            data = _mutated(draw, data)
    return _cheap(Sent(method, data))


def _mutated(draw: Draw, data: bytes) -> bytes:
    begin: int = draw(st.integers(0, len(data)))
    end: int = min(len(data), begin + draw(st.integers(0, 16)))
    inserted: bytes
    match draw(st.integers(0, 5)):
        case 0:
            return data[:begin] + data[end:]
        case 1:
            return data[:begin]
        case 2:
            times: int = draw(st.integers(1, 50))
            return data[:end] + data[begin:end] * times + data[end:]
        case 3:
            inserted = draw(st.binary(max_size=16))
            return data[:begin] + inserted + data[end:]
        case 4:
            inserted = draw(st.sampled_from(_UNKNOWN_FIELDS))
        case _:
            inserted = draw(st.sampled_from(_BROKEN_FIELDS))
    return data + inserted


def _cheap(request: Sent) -> Sent:
    """Keep what would be rendered tiny, and let nothing load the ranks anew: both take long.

    What is too much for that is only validated, by a field that is written once more at the end.
    """
    message: Any = request.message
    if isinstance(message, pb.GenerateRequest):
        costly = not (message.validate_only or _is_tiny(message))
        last: Message = pb.GenerateRequest(validate_only=True)
    elif isinstance(message, pb.ConfigureRequest):
        costly = message.allow_reload and not message.validate_only
        last = pb.ConfigureRequest(validate_only=True)
    elif isinstance(message, pb.TuneRequest):
        # Here the same field, within, has it refused.
        costly = not _is_short(message)
        last = pb.TuneRequest(generation=pb.GenerateRequest(validate_only=True))
    else:
        return request
    if not costly:
        return request
    return Sent(request.method, request.data + last.SerializeToString())


def _is_tiny(message: pb.GenerateRequest) -> bool:
    if not (message.HasField("width") and message.HasField("height")):
        return False
    pixels = message.width * message.height * max(1, message.num_images)
    steps = message.num_inference_steps or len(message.sigmas)
    # Whatever is out of range is refused, and costs nothing.
    return pixels <= MOST_PIXELS and 0 < steps <= MOST_STEPS


def _is_short(message: pb.TuneRequest) -> bool:
    generations = len(message.prompts) * (1 + len(message.candidates))
    return (
        _is_tiny(message.generation)
        and bool(message.candidates)
        and generations <= MOST_GENERATIONS
    )
