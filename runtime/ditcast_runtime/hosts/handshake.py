"""How a rank and the service show each other that they know the group's secret; it is never sent.

    rank    -> service   Hello      who it is, and random bytes
    service -> rank      Challenge  the epoch, and random bytes of its own
    rank    -> service   Proof      an HMAC over both
    service -> rank      Welcome    another HMAC over both; or Refused, once there was a proof

The rank proves itself first, so that strangers get nothing that was made with the secret. Each side
adds random bytes, so that nothing heard earlier proves anything. This file knows no sockets.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec

from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import Problem

RELEASE = version("ditcast")
"""Both sides must be of one release: what follows the handshake has no versions of its own."""

LENGTH = struct.Struct(">H")
MAX_FRAME_BYTES = 512
"""Of the payload; all that a stranger can make the other side hold."""
MIN_SECRET_BYTES = 32
"""Whoever meets a rank without TLS can try secrets against its proof at leisure."""

_RANDOM_BYTES = 32
_REASON_CHARACTERS = 200

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Who wants to attach."""

    release: Annotated[str, msgspec.Meta(max_length=64)]
    rank: Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
    """As its launcher counts; which rank of the group it becomes is the service's to say."""
    world_size: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    process_id: Annotated[int, msgspec.Meta(ge=1, lt=2**32)]
    nonce: Digest


class Challenge(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What has to be proven for."""

    epoch: Annotated[int, msgspec.Meta(ge=0)]
    alive_timeout: Annotated[float, msgspec.Meta(gt=0)]
    """Longest silence that either side puts up with, in seconds."""
    nonce: Digest


class Proof(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The rank knows the secret."""

    mac: Digest


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The service knows the secret, and takes the rank."""

    mac: Digest


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The rank knows the secret, and there is no place for it now."""

    reason: Annotated[str, msgspec.Meta(max_length=_REASON_CHARACTERS)]


Frame = Hello | Challenge | Proof | Welcome | Refused

_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


class HandshakeFailed(Exception):
    """The other side is not whom one wants to talk to, or does not want to talk."""


class Secret:
    """What all ranks of a group and its service know; the only thing that it makes are proofs."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @classmethod
    def read(cls, path: Path, field: str) -> Secret:
        """Read it from a file; white space around it does not count.

        Raises:
            ConfigError: under `field`; it cannot be read, or is too short.
        """
        try:
            content = path.read_bytes().strip()
        except OSError as error:
            reason = f"cannot read {path}: {error.strerror}"
            raise ConfigError((Problem(field, reason),)) from error
        if len(content) < MIN_SECRET_BYTES:
            reason = f"{path} holds less than {MIN_SECRET_BYTES} bytes"
            raise ConfigError((Problem(field, reason),))
        return cls(content)

    def proof(self, hello: Hello, challenge: Challenge) -> bytes:
        """Make what only a rank that knows the secret can say."""
        return self._mac("rank", hello, challenge)

    def counterproof(self, hello: Hello, challenge: Challenge) -> bytes:
        """Make what only a service that knows the secret can say."""
        return self._mac("service", hello, challenge)

    def _mac(self, side: str, hello: Hello, challenge: Challenge) -> bytes:
        # All that was said is in it; the side too, or one's own proof could be sent back to one.
        said = msgspec.msgpack.encode(("ditcast attach", side, hello, challenge))
        return hmac.digest(self._content, said, hashlib.sha256)


def agree(mac: bytes, expected: bytes, why_not: str) -> None:
    """Compare two MACs in constant time.

    Raises:
        HandshakeFailed: with `why_not`; they differ.
    """
    if not hmac.compare_digest(mac, expected):
        raise HandshakeFailed(why_not)


def nonce() -> bytes:
    """Give random bytes that nobody has seen before."""
    return secrets.token_bytes(_RANDOM_BYTES)


def refusal(reason: str) -> Refused:
    """Refuse with a reason, shortened to what a frame may carry."""
    return Refused(reason=reason[:_REASON_CHARACTERS])


def pack(frame: Frame) -> bytes:
    """Encode a frame with its length before it."""
    payload = msgspec.msgpack.encode(frame)
    return LENGTH.pack(len(payload)) + payload


def payload_size(head: bytes) -> int:
    """Read a frame's length; HandshakeFailed if it is larger than any."""
    (size,) = LENGTH.unpack(head)
    if size > MAX_FRAME_BYTES:
        raise HandshakeFailed(f"a frame of {size} bytes was announced")
    return int(size)


def unpack(payload: bytes) -> Frame:
    """Decode a frame; HandshakeFailed if it is none."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HandshakeFailed(f"this is no frame of a handshake: {error}") from error
