"""What was seen of a group when it was lost: a report in the log, and a file where one is wanted.

Each rank keeps a descriptor to a file of the private folder for Python's faulthandler, which writes
the stacks there when the rank dies of a fault, and when the service asks a rank that still lives.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

KEPT_REPORTS = 20
"""Report files kept in the folder; the oldest go first."""

_MAX_STACK_CHARACTERS = 8_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RankRemains:
    """One rank as it was found."""

    rank: int
    process_id: int
    ended: str
    """How the process ended, such as "killed by SIGKILL"; "alive" where it had not."""
    last_report: str
    """Kind of the last report that came from it, apart from signs of life."""
    silent_seconds: float | None
    """Since its last sign of life; None if none ever came."""
    resident_bytes: int | None
    """Resident memory; None where the process is gone."""
    stacks: str
    """What faulthandler wrote: all threads of a rank that lived, or of the fault that ended it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrashReport:
    """One lost group."""

    time: str
    epoch: int
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
    path.write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")
    for old in sorted(folder.glob("crash-*.json"))[:-KEPT_REPORTS]:
        old.unlink(missing_ok=True)
    return path
