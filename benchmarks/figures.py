"""A figure: one thing that was measured several times, with its median and its spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A place in a plot."""

    plot: str
    curve: str
    axis: str
    """What is on the axis that `at` is on."""
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What several measurements of one thing gave."""

    part: str
    """The part of the suite that measured it."""
    name: str
    """Unique among the figures of a run."""
    title: str
    """What it is, for the table."""
    unit: str
    world_size: int
    threads: int
    """Torch threads of each rank."""
    count: int
    """Number of measurements."""
    median: float
    median_low: float
    """Lower end of the 95 % confidence interval of the median."""
    median_high: float
    """Upper end of it."""
    minimum: float
    lower_quartile: float
    upper_quartile: float
    maximum: float
    target: float | None
    """What the median should not exceed, in the same unit; with `at_least`, not fall below."""
    at_least: bool
    note: str
    point: Point | None
    """Where it is in a plot, if it is in one."""

    @property
    def verdict(self) -> str:
        """Say whether the target is met, as far as the interval decides it; empty without one."""
        if self.target is None:
            return ""
        below, above = self.median_high <= self.target, self.median_low >= self.target
        if below if not self.at_least else above:
            return "met"
        return "missed" if below or above else "undecided"


@dataclass(frozen=True, slots=True)
class Table:
    """What was seen and is no figure: one row for each who did it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """What several figures of a part have in common."""

    part: str
    world_size: int
    threads: int

    def figure(
        self,
        name: str,
        title: str,
        unit: str,
        values: Sequence[float],
        *,
        target: float | None = None,
        at_least: bool = False,
        note: str = "",
        point: Point | None = None,
    ) -> Figure:
        """Sum up the measurements of one thing; there must be one at least."""
        ordered = sorted(values)
        low, high = _median_interval(ordered)
        first, _, third = _quartiles(ordered)
        return Figure(
            part=self.part,
            name=name,
            title=title,
            unit=unit,
            world_size=self.world_size,
            threads=self.threads,
            count=len(ordered),
            median=statistics.median(ordered),
            median_low=low,
            median_high=high,
            minimum=ordered[0],
            lower_quartile=first,
            upper_quartile=third,
            maximum=ordered[-1],
            target=target,
            at_least=at_least,
            note=note,
            point=point,
        )


def _quartiles(ordered: Sequence[float]) -> list[float]:
    if len(ordered) == 1:
        return [ordered[0]] * 3
    return statistics.quantiles(ordered, n=4, method="inclusive")


def _median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Give the order statistics that hold the true median between them 19 times of 20."""
    count = len(ordered)
    reach = 1.96 * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - reach))
    return ordered[low], ordered[count - 1 - low]
