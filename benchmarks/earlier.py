"""A stored run, and how a new one compares with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure

FORMAT = 2
"""Of the JSON; grows when a key changes its meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A median as a multiple of the earlier one; both ends allow for the intervals of both."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Earlier:
    """The figures of a stored run, by name; none if there is nothing to compare with."""

    date: str
    figures: Mapping[str, Mapping[str, float]]

    def changes(self, figures: Sequence[Figure]) -> dict[str, Change]:
        """Compare the figures that both runs have, where a ratio of them means something."""
        return {
            figure.name: _change(figure, self.figures[figure.name])
            for figure in figures
            if figure.name in self.figures and self._comparable(figure)
        }

    def _comparable(self, figure: Figure) -> bool:
        stored = self.figures[figure.name]
        return figure.median_low > 0 and stored["median_low"] > 0


NONE = Earlier("", {})


def read(path: Path, facts: Mapping[str, object]) -> Earlier:
    """Read the run in a file, if it is of the same machine and as long as the new one."""
    if not path.exists():
        return NONE
    stored = json.loads(path.read_text("utf-8"))
    if any(stored.get(name) != facts[name] for name in ("machine", "quick")):
        return NONE
    figures = {figure["name"]: figure for figure in stored["figures"]}
    return Earlier(stored["date"], figures)


def _change(figure: Figure, stored: Mapping[str, float]) -> Change:
    return Change(
        ratio=figure.median / stored["median"],
        low=figure.median_low / stored["median_high"],
        high=figure.median_high / stored["median_low"],
    )
