"""Which sizes a pipeline and its group can make exactly, and the nearest ones to a size it cannot.

Nothing is ever rounded: a picture of another size than was asked for is a wrong picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ditcast_runtime.config import EngineConfig
from ditcast_runtime.messages import Facts
from ditcast_runtime.settings import Problem

_SUGGESTIONS = 3


_BYTES_PER_PIXEL = 3


def most_pixels(config: EngineConfig, num_frames: int = 1) -> int:
    """Give how many pixels a frame of all outputs may have, as limited by number and by bytes."""
    bytes_of_one = config.max_bytes_in_flight // max(1, num_frames)
    return min(config.max_pixels, bytes_of_one // _BYTES_PER_PIXEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The sizes that one generation of so many images may have."""

    multiple: int
    """Each side must be a multiple of this many pixels."""
    shard_multiple: int
    """The number of image tokens must be a multiple of this, for the ranks to split it."""
    min_side: int
    max_side: int
    max_pixels: int
    """Of one image."""

    @classmethod
    def of(
        cls, facts: Facts, config: EngineConfig, num_images: int, num_frames: int | None = None
    ) -> Sizes:
        """Join what the model needs with what the operator allows."""
        return cls(
            multiple=facts.size_multiple,
            shard_multiple=facts.shard_multiple,
            min_side=config.min_side,
            max_side=config.max_side,
            max_pixels=most_pixels(config, num_frames or 1) // max(1, num_images),
        )

    def check(self, width: int, height: int) -> list[Problem]:
        """Find what is wrong with a size; a reason names the nearest sizes that work."""
        problems = [
            Problem(name, f"{side} is out of range: {self.min_side} to {self.max_side} pixels")
            for name, side in (("width", width), ("height", height))
            if not self.min_side <= side <= self.max_side
        ]
        if problems:
            return problems
        return [
            Problem(name, f"{reason}{self._hint(width, height)}")
            for name, reason in self._misfits(width, height)
        ]

    def nearest(self, width: int, height: int) -> list[tuple[int, int]]:
        """List the nearest sizes that work, the closest first."""
        by_distance = sorted(
            {(w, h) for w in self._near(width) for h in self._near(height) if self._works(w, h)},
            key=lambda size: (abs(size[0] - width) + abs(size[1] - height), size),
        )
        return by_distance[:_SUGGESTIONS]

    def _misfits(self, width: int, height: int) -> list[tuple[str, str]]:
        """Name the fields of a size within the limits that does not fit, and why."""
        sides = (("width", width), ("height", height))
        found = [
            (name, f"{side} is no multiple of {self.multiple}")
            for name, side in sides
            if side % self.multiple
        ]
        size = f"{width}x{height}"
        if not found and not self._shards(width, height):
            parts = f"cannot split into {self.shard_multiple} equal parts"
            tokens = (width // self.multiple) * (height // self.multiple)
            found.append(("width", f"{size} has {tokens} image tokens, which the ranks {parts}"))
        if width * height > self.max_pixels:
            allowed = f"{self.max_pixels} are allowed for this number of images"
            found.append(("width", f"{size} is {width * height} pixels an image; {allowed}"))
        return found

    def _hint(self, width: int, height: int) -> str:
        """Name the nearest sizes, or nothing where none is near."""
        sizes = ", ".join(f"{w}x{h}" for w, h in self.nearest(width, height))
        return f"; the nearest sizes that work are {sizes}" if sizes else ""

    def _near(self, side: int) -> Iterator[int]:
        """List multiples around a side; among so many in a row one shards, whatever the other."""
        reach = min(self.shard_multiple, 64)
        first = side // self.multiple - reach
        yield from (self.multiple * count for count in range(max(1, first), first + 2 * reach + 2))

    def _shards(self, width: int, height: int) -> bool:
        tokens = (width // self.multiple) * (height // self.multiple)
        return tokens % self.shard_multiple == 0

    def _works(self, width: int, height: int) -> bool:
        return (
            self.min_side <= width <= self.max_side
            and self.min_side <= height <= self.max_side
            and width * height <= self.max_pixels
            and self._shards(width, height)
        )
