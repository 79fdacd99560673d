"""A run, as tables and plots for the reader and as JSON for the record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import table as rich_table
from rich.console import Console

from benchmarks import plots
from benchmarks.earlier import FORMAT, Change, Earlier
from benchmarks.figures import Figure
from benchmarks.suite import Found


class Report:
    """One run, beside the one before it."""

    def __init__(self, facts: Mapping[str, object], found: Found, earlier: Earlier) -> None:
        self._facts = dict(facts) | {"compared with the run of": earlier.date or "no other"}
        self._found = found
        self._changes = earlier.changes(found.figures)

    def write(self, path: Path) -> None:
        """Store all of it as JSON, and beside that its tables as Markdown, and its plots."""
        content = {"format": FORMAT, **self._facts}
        content["figures"] = [self._entry(figure) for figure in self._found.figures]
        content["tables"] = [asdict(table) for table in self._found.tables]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        drawn = plots.draw(self._found.figures, path)
        path.with_suffix(".md").write_text(self._markdown(drawn), "utf-8")

    def show(self, console: Console) -> None:
        """Print the tables."""
        shown = _columned(_COLUMNS, 1)
        part = ""
        for figure in self._found.figures:
            if part and figure.part != part:
                shown.add_row()
            part = figure.part
            *cells, target, change = self._row(figure)
            colour = _COLOURS.get(figure.verdict, "default")
            shown.add_row(*cells, f"[{colour}]{target}[/]", change)
        console.print(shown)
        for table in self._found.tables:
            console.print(f"\n{table.title}")
            listed = _columned(table.columns, len(table.columns))
            for row in table.rows:
                listed.add_row(*row)
            console.print(listed)

    def _entry(self, figure: Figure) -> dict[str, object]:
        change = self._changes.get(figure.name)
        compared = {"verdict": figure.verdict, "to_last": asdict(change) if change else None}
        return asdict(figure) | compared

    def _markdown(self, drawn: Sequence[Path]) -> str:
        named = "\n".join(f"- {name}: {_plain(value)}" for name, value in self._facts.items())
        parts = [named, _marked_down(_COLUMNS, [self._row(one) for one in self._found.figures])]
        parts += [f"![{path.stem}]({path.name})" for path in drawn]
        for table in self._found.tables:
            parts += [f"## {table.title}", _marked_down(table.columns, table.rows, texts=True)]
        return "\n\n".join(parts) + "\n"

    def _row(self, figure: Figure) -> tuple[str, ...]:
        return (
            figure.title,
            str(figure.world_size),
            _number(figure.median),
            figure.unit,
            _range(figure.median_low, figure.median_high),
            _range(figure.minimum, figure.maximum),
            str(figure.count),
            _target(figure),
            _change(self._changes.get(figure.name)),
        )


_COLOURS = {"met": "green", "missed": "red", "undecided": "yellow"}
_COLUMNS = (
    *("figure", "ranks", "median", "unit", "95 % interval", "min to max", "n", "target"),
    "to the last run",
)


def _columned(columns: Sequence[str], texts: int) -> rich_table.Table:
    """Make a table whose first columns hold texts, and the others numbers."""
    made = rich_table.Table(box=None, pad_edge=False)
    for index, name in enumerate(columns):
        made.add_column(name, justify="left" if index < texts else "right")
    return made


def _marked_down(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: bool = False
) -> str:
    rule = ("---",) * len(columns) if texts else ("---", *["---:"] * (len(columns) - 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _range(low: float, high: float) -> str:
    return f"{_number(low)} .. {_number(high)}"


def _target(figure: Figure) -> str:
    if figure.target is None:
        return ""
    bound = "at least " if figure.at_least else ""
    return f"{bound}{figure.target:g} {figure.verdict}"


def _change(change: Change | None) -> str:
    if change is None:
        return ""
    return f"{_number(change.ratio)} ({_range(change.low, change.high)})"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
