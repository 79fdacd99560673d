"""Crash reports are whole, few and small, whatever was found; and nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditcast_runtime import crash_report
from ditcast_runtime.causes import RestartCause
from ditcast_runtime.crash_report import CrashReport, RankRemains, keep, read_stacks


def report(epoch: int, stacks: str = "", ranks: int = 1) -> CrashReport:
    """Make the report of one lost group."""
    return CrashReport(
        time=f"2026-11-26T12:00:{epoch:02}+00:00",
        epoch=epoch,
        cause=RestartCause.DIED,
        explanation="rank 0 was killed by SIGKILL",
        ranks=tuple(
            RankRemains(
                rank=rank,
                process_id=1,
                ended="alive",
                last_report="Step",
                silent_seconds=0.1,
                resident_bytes=2**30,
                stacks=stacks,
            )
            for rank in range(ranks)
        ),
        request_id="\U0001f6b2" * 128,
        last_step=3,
    )


def test_only_the_newest_are_kept_and_nothing_else_goes(tmp_path: Path) -> None:
    """A service that is lost again and again does not fill the disk."""
    other = tmp_path / "notes.json"
    other.write_text("mine")
    kept = [keep(report(epoch), tmp_path / "new" / "..") for epoch in range(1, 31)]
    found = sorted(path.name for path in tmp_path.glob("crash-*"))
    assert found == [path.name for path in kept[-crash_report.KEPT_REPORTS :]]
    assert other.read_text() == "mine"
    assert json.loads((tmp_path / found[-1]).read_text())["last_step"] == 3


def test_a_report_has_a_bounded_size_however_many_ranks_there_were(tmp_path: Path) -> None:
    """Of stacks the end is kept, which says where a rank was last, and less of it with more."""
    stacks = "\U0001f6b2" * 7_996 + "last"
    path = keep(report(1, stacks, ranks=64), tmp_path)
    assert path.stat().st_size <= crash_report.MAX_REPORT_BYTES
    read = json.loads(path.read_text())
    assert len(read["ranks"]) == 64
    assert all(rank["stacks"].endswith("last") for rank in read["ranks"])
    single = json.loads(keep(report(2, stacks), tmp_path).read_text())
    assert single["ranks"][0]["stacks"] == stacks


def test_half_a_report_is_never_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full leaves the reports that were there, and no other file."""
    keep(report(1), tmp_path)

    def full(self: Path, text: str, encoding: str) -> int:
        with self.open("w") as file:
            file.write(text[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        keep(report(2), tmp_path)
    [left] = tmp_path.iterdir()
    assert json.loads(left.read_text())["epoch"] == 1


def test_only_the_end_of_stacks_is_read(tmp_path: Path) -> None:
    """A rank that writes without end does not fill the report; without a file there are none."""
    file = tmp_path / "stacks"
    file.write_bytes(b"\xff" * 100_000 + b"end")
    assert len(read_stacks(file)) == 8_000
    assert read_stacks(file).endswith("end")
    assert read_stacks(tmp_path / "none") == ""
