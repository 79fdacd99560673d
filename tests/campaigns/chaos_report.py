"""What a chaos campaign showed: as a table, and with other campaigns as one text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from tests.campaigns.outcome import Outcome
from tests.campaigns.plan import FaultKind
from tests.campaigns.remains import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One campaign."""

    seed: int
    world_size: int
    date: str
    seconds: int
    faults: dict[str, int]
    """That struck, by kind."""
    acts: dict[str, int]
    """Of the clients, and the faults' own generations."""
    statuses: dict[str, int]
    restarted: int
    """Generations whose ranks or whose service were lost at least once."""
    restarted_completed: int
    """Of those: completed, with the bytes of undisturbed ones."""
    resent: int
    """Of those: sent again by the client, to a new service."""
    services: int
    probes_serving: int
    probes_not_serving: int
    before: Usage
    after: Usage
    broken: list[Outcome]
    """Outcomes that break a promise."""
    problems: list[str]
    """Everything else that breaks one."""

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not self.broken and not self.problems


def show(console: Console, report: Report) -> None:
    """Print a report."""
    console.print(_table("fault", report.faults), _table("outcome", report.statuses))
    for line in _lines([report]):
        console.print(line)
    for outcome in report.broken:
        console.print(f"[red]BROKEN[/] {outcome}")
    for problem in report.problems:
        console.print(f"[red]BROKEN[/] {problem}")


def markdown(reports: Sequence[Report]) -> str:
    """Give one text for all campaigns."""
    sizes = sorted({report.world_size for report in reports})
    by_size = {size: _sum(r.faults for r in reports if r.world_size == size) for size in sizes}
    rows = [["fault", *(f"{size} rank{'s' * (size > 1)}" for size in sizes), "all"]]
    rows += [["---"] + ["---:"] * (len(sizes) + 1)]
    for kind in FaultKind:
        counts = [by_size[size][kind] for size in sizes]
        rows.append([kind, *map(str, counts), str(sum(counts))])
    totals = [by_size[size].total() for size in sizes]
    rows.append(["all", *map(str, totals), str(sum(totals))])
    ends = [["how generations and changes ended", "number"], ["---", "---:"]]
    ends += [[status, str(n)] for status, n in _sum(r.statuses for r in reports).most_common()]
    lines = "\n".join(f"- {line}" for line in _lines(reports))
    return f"{_grid(rows)}\n\n{_grid(ends)}\n\n{lines}\n"


def _lines(reports: Sequence[Report]) -> list[str]:
    """Say in sentences what does not fit a table."""
    seeds = ", ".join(f"{each.seed} on {each.world_size} ({each.date[:10]})" for each in reports)
    broken = sum(len(each.broken) + len(each.problems) for each in reports)
    restarted = sum(each.restarted for each in reports)
    same = sum(each.restarted_completed for each in reports)
    resent = sum(each.resent for each in reports)
    serving = sum(each.probes_serving for each in reports)
    asked = serving + sum(each.probes_not_serving for each in reports)
    lost = (
        f"generations that lost their ranks or their service: {restarted}; completed with the "
        f"bytes of undisturbed ones: {same}; sent again by the client to a new service: {resent}"
    )
    health = (
        f"health was asked {asked} times; the {serving} times that it said SERVING, a generation "
        "was tried"
    )
    lines = [
        f"seeds, on ranks: {seeds}; {sum(each.seconds for each in reports) // 60} min in all",
        f"promises broken: {broken}",
        lost,
        f"services: {sum(each.services for each in reports)}",
        health,
    ]
    return lines + [
        f"held at the end, seed {each.seed} on {each.world_size}: {_left(each)}" for each in reports
    ]


def _left(report: Report) -> str:
    before, after = report.before, report.after
    return (
        f"{after.descriptors} descriptors (before: {before.descriptors}), "
        f"{after.threads} threads ({before.threads}), {after.children} processes "
        f"({before.children}), {after.folders} folders ({before.folders}), "
        f"{after.resident_bytes / 2**20:.0f} MiB ({before.resident_bytes / 2**20:.0f})"
    )


def _sum(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _grid(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _table(name: str, counts: dict[str, int]) -> Table:
    table = Table(name, "number", box=None)
    for key, number in sorted(counts.items()):
        table.add_row(key, str(number))
    return table
