"""A run's figures, as a table for the terminal and as JSON for the record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure

FORMAT = 1
"""Of the JSON; grows when a key changes its meaning."""


def write(path: Path, facts: dict[str, object], figures: Sequence[Figure]) -> None:
    """Store a run: all of it as JSON, and its table as Markdown beside that."""
    listed = [asdict(figure) | {"verdict": figure.verdict} for figure in figures]
    content = {"format": FORMAT} | facts | {"figures": listed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    path.with_suffix(".md").write_text(_markdown(facts, figures), "utf-8")


def show(console: Console, figures: Sequence[Figure]) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == _COLUMNS[0] else "right")
    part = ""
    for figure in figures:
        if part and figure.part != part:
            table.add_row()
        part = figure.part
        *cells, target = _row(figure)
        colour = _COLOURS.get(figure.verdict, "default")
        table.add_row(*cells, f"[{colour}]{target}[/]")
    console.print(table)


_COLOURS = {"met": "green", "missed": "red", "undecided": "yellow"}
_COLUMNS = ("figure", "ranks", "median", "unit", "95 % interval", "min to max", "n", "target")


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.title,
        str(figure.world_size),
        _number(figure.median),
        figure.unit,
        _range(figure.median_low, figure.median_high),
        _range(figure.minimum, figure.maximum),
        str(figure.count),
        _target(figure),
    )


def _markdown(facts: dict[str, object], figures: Sequence[Figure]) -> str:
    rows = [_COLUMNS, ("---", *["---:"] * (len(_COLUMNS) - 1)), *map(_row, figures)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    named = "\n".join(f"- {name}: {_plain(value)}" for name, value in facts.items())
    return f"{named}\n\n{table}\n"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _range(low: float, high: float) -> str:
    return f"{_number(low)} .. {_number(high)}"


def _target(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return f"{figure.target:g} {figure.verdict}"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
