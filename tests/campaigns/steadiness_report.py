"""What a campaign on steadiness showed: figures, a plot, and a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tests.campaigns.flatness import Line, line
from tests.campaigns.remains import Usage
from tests.campaigns.samples import Sample

_COLUMNS = (
    *("ranks", "process", "quantity", "mean", "first to last twentieth"),
    *("slope by 1,000 generations, 95 % interval", "growth", "verdict"),
)
_UNITS = {"resident_bytes": ("MiB resident", 2**20), "descriptors": ("descriptors", 1)}
_UNITS["threads"] = ("threads", 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One quantity of one process."""

    process: str
    quantity: str
    line: Line


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One campaign."""

    seed: int
    world_size: int
    date: str
    seconds: int
    generations: int
    """That were accepted."""
    warm_up: int
    """Of those, the first ones, which were not measured."""
    acts: dict[str, int]
    statuses: dict[str, int]
    figures: list[Figure]
    before: Usage
    after: Usage
    problems: list[str]

    @property
    def kept(self) -> bool:
        """Whether nothing grows, and every generation ended as it should."""
        return not self.problems and all(each.line.verdict != "grows" for each in self.figures)


def measure(samples: Sequence[Sample], warm_up: int) -> list[Figure]:
    """Lay a line through each quantity of each process, after the warm-up."""
    figures = []
    for process in dict.fromkeys(sample.process for sample in samples):
        own = [each for each in samples if each.process == process and each.generation >= warm_up]
        places = [float(each.generation) for each in own]
        for quantity, (unit, size) in _UNITS.items():
            values = [getattr(each, quantity) / size for each in own]
            figures.append(Figure(process=process, quantity=unit, line=line(places, values)))
    return figures


def show(console: Console, report: Report) -> None:
    """Print a report."""
    console.print(markdown([report]), markup=False)
    for problem in report.problems:
        console.print(f"[red]BROKEN[/] {problem}")


def markdown(reports: Sequence[Report]) -> str:
    """Give one text for all campaigns."""
    rows: list[tuple[str, ...]] = [
        _COLUMNS,
        ("---:", "---", "---", "---:", "---:", "---:", "---:", "---"),
    ]
    rows += [_row(report, figure) for report in reports for figure in report.figures]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n" + "\n".join(f"- {_sentence(report)}" for report in reports) + "\n"


def _row(report: Report, figure: Figure) -> tuple[str, ...]:
    found = figure.line
    return (
        str(report.world_size),
        figure.process,
        figure.quantity,
        f"{found.mean:.1f}",
        f"{found.first:.1f} to {found.last:.1f}",
        f"{found.slope:+.2f} ({found.low:+.2f} to {found.high:+.2f})",
        f"{found.growth:+.2%}",
        found.verdict,
    )


def _sentence(report: Report) -> str:
    ends = ", ".join(f"{status}: {number}" for status, number in sorted(report.statuses.items()))
    return (
        f"world size {report.world_size}, seed {report.seed}, {report.date[:10]}: "
        f"{report.generations} generations in {report.seconds // 60} min, the first "
        f"{report.warm_up} of them warm-up; {ends}; promises broken: {len(report.problems)}; "
        f"idle, the service held {report.before.descriptors} descriptors before and "
        f"{report.after.descriptors} after, {report.before.threads} threads and "
        f"{report.after.threads} ([plot](results/reliability/steadiness-ranks-{report.world_size}"
        f".png))"
    )


def plot(samples: Sequence[Sample], report: Report, path: Path) -> None:
    """Draw the memory of each process over the generations."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    processes = list(dict.fromkeys(sample.process for sample in samples))
    figure, axes = plt.subplots(len(processes), 1, sharex=True, squeeze=False)
    figure.set_size_inches(8, 2 * len(processes))
    for name, (axis,) in zip(processes, axes, strict=True):
        own = [each for each in samples if each.process == name]
        memory = [each.resident_bytes / 2**20 for each in own]
        axis.plot([each.generation for each in own], memory, linewidth=0.8)
        axis.axvline(report.warm_up, color="grey", linestyle=":")
        axis.set_ylabel(f"{name}, MiB")
        axis.set_ylim(bottom=0)
    axes[-1][0].set_xlabel(f"generations (measured after {report.warm_up})")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
