"""Input pictures on their way to the ranks: decoded pixels in memory that is passed, not copied.

The service keeps them from acceptance to the end of their generation, so that one that begins again
has them; what travels in frames is only how the pixels lie.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ditcast_runtime.messages import Picture


@dataclass(frozen=True, slots=True)
class Pixels:
    """One decoded picture: rows from the top, without padding."""

    width: int
    height: int
    mode: str
    """RGB, or L for a mask: 8 bits each."""
    data: bytes


class Pictures:
    """The pixels of all pictures of one request, one after the other, in a descriptor."""

    def __init__(self, pixels: Sequence[Pixels]) -> None:
        self.size_bytes = sum(len(each.data) for each in pixels)
        self.descriptor = os.memfd_create("ditcast-input", os.MFD_CLOEXEC)
        # Also where nobody closes it, as when a caller leaves while its pictures are decoded.
        self._finalizer = weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, self.size_bytes)
        with mmap.mmap(self.descriptor, self.size_bytes) as memory:
            for each in pixels:
                memory.write(each.data)

    def close(self) -> None:
        """Give the memory back."""
        self._finalizer()


def size_bytes(layout: Sequence[Picture]) -> int:
    """Give the bytes that pictures of this layout take together."""
    return sum(_bytes_of(picture) for picture in layout)


def read(descriptor: int, size: int) -> bytearray:
    """Give what a descriptor holds, and close it."""
    try:
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as memory:
            return bytearray(memory)
    finally:
        os.close(descriptor)


def build(layout: Sequence[Picture], pixels: bytearray) -> dict[str, list[Any]]:
    """Give the pictures as Pillow's, by the parameter that takes them, in the request's order."""
    built: dict[str, list[Any]] = {}
    for picture, data in zip(layout, _cut(layout, pixels), strict=True):
        size = (picture.width, picture.height)
        built.setdefault(picture.parameter, []).append(Image.frombytes(picture.mode, size, data))
    return built


def _cut(layout: Sequence[Picture], pixels: bytearray) -> Iterator[bytes]:
    offset = 0
    for picture in layout:
        end = offset + _bytes_of(picture)
        yield bytes(pixels[offset:end])
        offset = end


def _bytes_of(picture: Picture) -> int:
    return picture.width * picture.height * len(picture.mode)
