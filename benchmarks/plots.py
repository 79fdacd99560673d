"""Draws the figures that have a place in a plot, one file for each plot, beside the record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Canvas

from benchmarks.figures import Figure

_INCHES = (6.4, 4.0)


def draw(figures: Sequence[Figure], record: Path) -> list[Path]:
    """Draw each plot with logarithmic axes: what grows as a power is a straight line."""
    plots: dict[str, dict[str, list[Figure]]] = {}
    for figure in figures:
        if figure.point is not None:
            curves = plots.setdefault(figure.point.plot, {})
            curves.setdefault(figure.point.curve, []).append(figure)
    return [_plot(name, curves, record) for name, curves in plots.items()]


def _plot(name: str, curves: dict[str, list[Figure]], record: Path) -> Path:
    canvas = Canvas(figsize=_INCHES, layout="constrained")
    axes = canvas.add_subplot()
    for curve, figures in curves.items():
        points = sorted((figure.point.at, figure) for figure in figures if figure.point is not None)
        medians = [figure.median for _, figure in points]
        below = [figure.median - figure.median_low for _, figure in points]
        above = [figure.median_high - figure.median for _, figure in points]
        places = [at for at, _ in points]
        axes.errorbar(places, medians, (below, above), marker="o", capsize=3, label=curve)
        axes.set_xlabel(next(figure.point.axis for figure in figures if figure.point is not None))
        axes.set_ylabel(figures[0].unit)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(name)
    axes.legend()
    path = record.with_name(f"{record.stem}-{name.replace(' ', '-')}.svg")
    # Without a date, so that the same figures are the same file.
    canvas.savefig(path, metadata={"Date": None})
    return path
