"""What follows from comparisons: figures of each candidate, the Pareto front, the one to take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

HOPELESS_DECIBELS = 6.0
"""Under the target, from which a candidate is given up: twice the error that may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One picture of a candidate, against the one without a cache."""

    candidate: int
    prompt: int
    psnr: float
    """dB."""
    ssim: float
    cached_steps: int
    total_steps: int
    seconds: float
    """Of denoising."""
    uncached_seconds: float
    """Of denoising without a cache."""

    @property
    def time_ratio(self) -> float:
        """The one to the other."""
        return self.seconds / self.uncached_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a candidate does, over the pictures that were compared."""

    candidate: int
    pictures: int
    dropped: bool
    """Whether it was given up before the last prompt."""
    psnr: float
    """dB, mean."""
    worst_psnr: float
    ssim: float
    """Mean."""
    worst_ssim: float
    cached_steps: float
    """Mean."""
    time_ratio: float
    """Median."""


def figures(comparisons: Sequence[Comparison], *, dropped: bool) -> Figures:
    """Sum up the comparisons of one candidate, of which there is at least one."""
    decibels = [each.psnr for each in comparisons]
    similarities = [each.ssim for each in comparisons]
    return Figures(
        candidate=comparisons[0].candidate,
        pictures=len(comparisons),
        dropped=dropped,
        psnr=statistics.fmean(decibels),
        worst_psnr=min(decibels),
        ssim=statistics.fmean(similarities),
        worst_ssim=min(similarities),
        cached_steps=statistics.fmean(each.cached_steps for each in comparisons),
        time_ratio=statistics.median(each.time_ratio for each in comparisons),
    )


def is_hopeless(comparisons: Sequence[Comparison], target_psnr: float) -> bool:
    """Say whether a candidate is too far under the target for more pictures to change that."""
    mean = statistics.fmean(each.psnr for each in comparisons)
    return mean < target_psnr - HOPELESS_DECIBELS


def pareto_front(found: Sequence[Figures]) -> frozenset[int]:
    """Name the candidates that no other one beats in speed and likeness, in both or at no cost.

    Dropped ones stand aside: their figures are of other pictures than those of the rest.
    """
    full = [each for each in found if not each.dropped]
    return frozenset(
        each.candidate for each in full if not any(_beats(other, each) for other in full)
    )


def _beats(one: Figures, other: Figures) -> bool:
    at_least = one.time_ratio <= other.time_ratio and one.psnr >= other.psnr
    return at_least and (one.time_ratio, one.psnr) != (other.time_ratio, other.psnr)


def recommended(found: Sequence[Figures], target_psnr: float) -> int | None:
    """Name the fastest candidate that reaches the target, if it is faster than no cache."""
    able = [
        each
        for each in found
        if not each.dropped and each.psnr >= target_psnr and each.time_ratio < 1
    ]
    # Of equally fast ones the one that is nearer to the pictures without a cache.
    best = min(able, key=lambda each: (each.time_ratio, -each.psnr), default=None)
    return None if best is None else best.candidate
