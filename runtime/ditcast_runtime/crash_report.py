"""What was seen of a group when it was lost: a report in the log, and a file where one is wanted.

Each rank keeps a descriptor to a file of the private folder for Python's faulthandler, which writes
the stacks there when the rank dies of a fault, and when the service asks a rank that still lives.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ditcast_runtime.causes import RestartCause

KEPT_REPORTS = 20
"""Report files kept in the folder; the oldest go first."""

MAX_REPORT_BYTES = 2**20
"""Largest report file: with 64 ranks, what each of them had on its stacks has to share it."""

_MAX_STACK_CHARACTERS = 8_000
_STACK_CHARACTERS = (_MAX_STACK_CHARACTERS, 2_000, 500, 0)
"""Of each rank, tried in turn until the report fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankRemains:
    """One rank as it was found."""

    rank: int
    process_id: int
    ended: str
    """How the process ended, such as "killed by SIGKILL"; "alive" where it had not. Of a rank that
    attached, how its channel was."""
    last_report: str
    """Kind of the last report that came from it, apart from signs of life."""
    silent_seconds: float | None
    """Since its last sign of life; None if none ever came."""
    resident_bytes: int | None
    """Resident memory; None where the process is gone."""
    stacks: str
    """What faulthandler wrote: all threads of a rank that lived, or of the fault that ended it. A
    rank that attached writes it to its own log."""
    host: str = ""
    """Where it attached from; empty: this host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrashReport:
    """The lost ranks of one group."""

    time: str
    group: int = 0
    """Index of the group, from 0."""
    epoch: int
    cause: RestartCause
    explanation: str
    ranks: tuple[RankRemains, ...]
    request_id: str | None = None
    """The generation that ran."""
    last_step: int | None = None
    """Its steps that had ended."""


def read_stacks(path: Path) -> str:
    """Give the end of what faulthandler wrote, where it wrote anything."""
    try:
        return path.read_text(errors="replace")[-_MAX_STACK_CHARACTERS:]
    except OSError:
        return ""


def resident_bytes(process_id: int) -> int | None:
    """Give a process's resident memory; None if it is gone."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(sizes[0]) * 1024 if sizes else None


def now() -> str:
    """Give the time as reports have it."""
    return datetime.now(UTC).isoformat()


def keep(report: CrashReport, folder: Path) -> Path:
    """Write a report and drop the oldest beyond `KEPT_REPORTS`; OSError if it cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = report.time.replace(":", "").replace("+0000", "Z")
    path = folder / f"crash-{stamp}-epoch-{report.epoch}.json"
    unfinished = path.with_suffix(".unfinished")
    try:
        unfinished.write_text(_bounded(report), encoding="utf-8")
        # Whoever collects reports never finds half of one, though the disk is full.
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    for old in sorted(folder.glob("crash-*.json"))[:-KEPT_REPORTS]:
        old.unlink(missing_ok=True)
    return path


def _bounded(report: CrashReport) -> str:
    """Give the report as JSON of at most `MAX_REPORT_BYTES`, with less of the stacks if need be."""
    texts = (json.dumps(asdict(_with_stacks(report, most)), indent=2) for most in _STACK_CHARACTERS)
    # ASCII, so that characters are bytes. Without stacks, all that is left has bounded lengths.
    return next(text for text in texts if len(text) <= MAX_REPORT_BYTES)


def _with_stacks(report: CrashReport, most: int) -> CrashReport:
    """Keep the end of each rank's stacks: what it was doing last."""
    ranks = (
        replace(rank, stacks=rank.stacks[max(0, len(rank.stacks) - most) :])
        for rank in report.ranks
    )
    return replace(report, ranks=tuple(ranks))
