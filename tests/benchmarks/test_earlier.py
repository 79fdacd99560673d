"""Comparisons of runs, and verdicts about targets: what is told of figures that were measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks import earlier
from benchmarks.figures import Figure, Subject, Table
from benchmarks.report import Report
from benchmarks.suite import Found

FACTS: dict[str, object] = {"date": "2026-11-01", "machine": {"cpu": "one"}, "quick": False}


def figure(values: Sequence[float], *, target: float | None = None, least: bool = False) -> Figure:
    """Make a figure of measurements."""
    subject = Subject("fixed", 1, 2)
    return subject.figure("cost", "Cost", "ms", values, target=target, at_least=least)


@pytest.mark.parametrize(
    ("values", "least", "verdict"),
    [
        ((1.0, 1.5), False, "met"),
        ((1.0, 3.0), False, "undecided"),
        ((3.0, 4.0), False, "missed"),
        ((1.0, 1.5), True, "missed"),
        ((1.0, 3.0), True, "undecided"),
        ((3.0, 4.0), True, "met"),
    ],
)
def test_a_target_is_met_or_missed_only_if_the_whole_interval_says_so(
    values: tuple[float, ...], *, least: bool, verdict: str
) -> None:
    """What the spread leaves open is undecided, whether much or little is wanted."""
    assert figure(values, target=2.0, least=least).verdict == verdict


def stored(tmp_path: Path, facts: dict[str, object], values: Sequence[float]) -> Path:
    """Store a run with one figure."""
    path = tmp_path / "run.json"
    table = Table("Seen", ("server", "answer"), (("one", "two"),))
    Report(facts, Found([figure(values)], [table]), earlier.NONE).write(path)
    assert "| one | two |" in path.with_suffix(".md").read_text("utf-8")
    return path


def test_a_run_is_compared_with_the_last_one_by_ratios_of_medians(tmp_path: Path) -> None:
    """The interval of the ratio allows for the intervals of both medians."""
    path = stored(tmp_path, FACTS, (1.0, 2.0, 4.0))
    change = earlier.read(path, FACTS).changes([figure((3.0, 4.0, 5.0))])["cost"]
    assert dataclasses.astuple(change) == (2.0, 3.0 / 4.0, 5.0)


def test_another_machine_is_compared_with_nothing(tmp_path: Path) -> None:
    """A ratio of figures of two machines says nothing about the code."""
    path = stored(tmp_path, FACTS, (1.0, 2.0))
    elsewhere = FACTS | {"machine": {"cpu": "another"}}
    assert earlier.read(path, elsewhere) is earlier.NONE
    assert earlier.read(tmp_path / "none.json", FACTS) is earlier.NONE


def test_a_difference_about_nothing_has_no_ratio(tmp_path: Path) -> None:
    """Dividing by an interval that holds zero would give any number."""
    run = earlier.read(stored(tmp_path, FACTS, (-1.0, 2.0)), FACTS)
    assert run.changes([figure((1.0, 2.0))]) == {}
