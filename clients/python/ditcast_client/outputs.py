"""Outputs: put together from the chunks of a stream, and checked against the receipt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ditcast.v1.generation_pb2 import OutputChunk, OutputDigest
from ditcast_client.errors import DigestMismatch, malformed


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A picture, a video or latents that a generation made."""

    output_index: int
    """Which output of the generation, from 0."""
    media_type: str
    """For instance "image/png"."""
    data: bytes = field(repr=False)
    """The whole encoded file."""

    def save(self, path: str | Path) -> Path:
        """Write the output to a file, in place of what was there, and return its path."""
        target = Path(path)
        target.write_bytes(self.data)
        return target


@dataclass(slots=True)
class _Part:
    """An output on its way: what its first chunk announced, and the bytes so far."""

    media_type: str
    total_bytes: int
    received: bytearray = field(default_factory=bytearray)


class OutputAssembly:
    """Puts outputs together from chunks; those of one output come in order, outputs may mix."""

    def __init__(self) -> None:
        self._parts: dict[int, _Part] = {}

    def take(self, chunk: OutputChunk) -> None:
        """Add a chunk.

        Raises:
            DataLoss: It leaves a gap, overlaps, goes beyond the total or contradicts one before.
        """
        part = self._parts.setdefault(
            chunk.output_index, _Part(chunk.media_type, chunk.total_bytes)
        )
        self._check(part, chunk)
        part.received += chunk.data

    def void(self) -> None:
        """Forget all chunks: the ranks were lost, and the generation begins again."""
        self._parts.clear()

    def finish(self, digests: Sequence[OutputDigest]) -> tuple[Output, ...]:
        """Give the outputs in order, each checked against the receipt's word on it.

        Raises:
            DigestMismatch: The bytes are not those that the server made.
            DataLoss: An output is missing, not whole, or not in the receipt.
        """
        if sorted(self._parts) != [digest.output_index for digest in digests]:
            expected = [digest.output_index for digest in digests]
            raise malformed(f"outputs {sorted(self._parts)} came, the receipt names {expected}")
        return tuple(self._finish(digest) for digest in digests)

    @staticmethod
    def _check(part: _Part, chunk: OutputChunk) -> None:
        where = f"output {chunk.output_index}"
        if (chunk.media_type, chunk.total_bytes) != (part.media_type, part.total_bytes):
            raise malformed(f"{where}: a chunk contradicts the media type or size of the first")
        if chunk.offset != len(part.received):
            raise malformed(
                f"{where}: a chunk at {chunk.offset}, but {len(part.received)} bytes came before"
            )
        if chunk.offset + len(chunk.data) > part.total_bytes:
            raise malformed(f"{where}: more bytes than the {part.total_bytes} announced")

    def _finish(self, digest: OutputDigest) -> Output:
        index, part = digest.output_index, self._parts[digest.output_index]
        if len(part.received) != part.total_bytes:
            raise malformed(
                f"output {index}: {len(part.received)} of {part.total_bytes} bytes came"
            )
        data = bytes(part.received)
        actual = hashlib.sha256(data).digest()
        if actual != digest.sha256:
            raise DigestMismatch(index, digest.sha256.hex(), actual.hex())
        return Output(output_index=index, media_type=part.media_type, data=data)
