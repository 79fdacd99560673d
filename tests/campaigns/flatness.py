"""Whether a quantity stays flat over many samples: its slope with an interval, and its growth.

Samples that lie close together are alike, so that an interval from all of them would be far too
narrow: the line is laid through the means of blocks, which are nearly independent.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BLOCKS: Final = 20
_T: Final = 2.101
"""The 97.5 % point of Student's t with `BLOCKS` - 2 degrees of freedom."""
MOST_GROWTH: Final = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line through samples, in their unit."""

    count: int
    mean: float
    first: float
    """Mean of the first block."""
    last: float
    """Mean of the last block."""
    slope: float
    """By 1,000 generations."""
    low: float
    """Lower end of the slope's 95 % confidence interval."""
    high: float
    """Upper end of it."""
    growth: float
    """What the slope makes of the whole length, as a part of the mean."""

    @property
    def verdict(self) -> str:
        """Say whether the interval holds 0 and the growth is under 2 %."""
        if self.growth >= MOST_GROWTH or self.low > 0:
            return "grows"
        return "falls" if self.high < 0 else "flat"


def line(places: Sequence[float], values: Sequence[float]) -> Line:
    """Lay a line through values at places, which rise; `BLOCKS` of them at least."""
    xs, ys = _blocks(places), _blocks(values)
    middle, mean = statistics.fmean(xs), statistics.fmean(ys)
    spread = sum((x - middle) ** 2 for x in xs)
    slope = sum((x - middle) * (y - mean) for x, y in zip(xs, ys, strict=True)) / spread
    rest = [y - mean - slope * (x - middle) for x, y in zip(xs, ys, strict=True)]
    error = math.sqrt(sum(each**2 for each in rest) / (BLOCKS - 2) / spread)
    length = places[-1] - places[0]
    return Line(
        count=len(values),
        mean=mean,
        first=ys[0],
        last=ys[-1],
        slope=1000 * slope,
        low=1000 * (slope - _T * error),
        high=1000 * (slope + _T * error),
        growth=slope * length / mean if mean else 0.0,
    )


def _blocks(values: Sequence[float]) -> list[float]:
    ends = [round(block * len(values) / BLOCKS) for block in range(BLOCKS + 1)]
    return [statistics.fmean(values[a:b]) for a, b in itertools.pairwise(ends)]
