"""What the load campaign showed: how late events were, and what was lost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Delays:
    """From the end of a step on the ranks to its event at the client, in milliseconds."""

    count: int
    median: float
    ninety: float
    """The 90th percentile."""
    ninety_nine: float
    maximum: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One campaign."""

    date: str
    generations: int
    streams: int
    own: Delays
    """With as many generations at once, each with a stream of its own."""
    shared: Delays
    """With all streams watching one generation."""
    problems: list[str]


def delays(seconds: Sequence[float]) -> Delays:
    """Sum delays up."""
    ordered = sorted(1000 * each for each in seconds)
    hundredths = statistics.quantiles(ordered, n=100, method="inclusive")
    return Delays(
        count=len(ordered),
        median=statistics.median(ordered),
        ninety=hundredths[89],
        ninety_nine=hundredths[98],
        maximum=ordered[-1],
    )


def markdown(reports: Sequence[Report]) -> str:
    """Give one text for all campaigns."""
    rows: list[tuple[str, ...]] = [
        ("step to event at the client, ms", "events", "median", "90 %", "99 %", "maximum"),
        ("---", "---:", "---:", "---:", "---:", "---:"),
    ]
    for report in reports:
        rows.append(_row(f"{report.generations} generations, a stream each", report.own))
        rows.append(_row(f"{report.streams} streams of one generation", report.shared))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    lines = [f"- {r.date[:10]}: streams that lost something: {len(r.problems)}" for r in reports]
    return f"{table}\n\n" + "\n".join(lines) + "\n"


def _row(name: str, found: Delays) -> tuple[str, ...]:
    figures = (found.median, found.ninety, found.ninety_nine, found.maximum)
    return (name, str(found.count), *(f"{each:.1f}" for each in figures))
