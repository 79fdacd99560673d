"""The line on a terminal that says how far loading is, below whatever the log says."""

from __future__ import annotations

from typing import TextIO

from ditcast_runtime.messages import Loading
from ditcast_runtime.timings import stage_text

_CELLS = 24
_ERASE_LINE = "\x1b[2K"


class LoadingBar:
    """Draws rank 0's progress: a bar where the bytes are known, else the stage alone.

    Each drawing ends at the beginning of its line, so that the next line of the log, which ranks
    write as well, goes over it.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal

    def show(self, report: Loading) -> None:
        """Draw where loading is; a listener of `Engine.on_loading`."""
        if report.rank == 0:
            text = stage_text(report.stage, report.bytes_done, report.bytes_total)
            self._write(f"{_bar(report.bytes_done, report.bytes_total)}{text}")

    def clear(self) -> None:
        """Leave nothing behind."""
        self._write("")

    def _write(self, text: str) -> None:
        self._terminal.write(f"\r{_ERASE_LINE}{text}\r")
        self._terminal.flush()


def _bar(done: int, total: int) -> str:
    if not total:
        return ""
    filled = _CELLS * min(done, total) // total
    return f"[{'#' * filled}{'.' * (_CELLS - filled)}] {100 * done // total:3d} %  "
