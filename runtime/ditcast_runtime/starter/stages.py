"""Which stages of a training run are finished, kept in its work folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class OtherRun(Exception):
    """The work folder holds a run with another plan, whose stages must not be mixed with this."""

    def __init__(self, work: Path) -> None:
        super().__init__(f"{work} holds another run: name another folder with --work, or empty it")
        self.work = work


class Run:
    """One training run: its folder, and which of its stages are finished."""

    def __init__(self, plan: dict[str, Any], work: Path) -> None:
        """Begin or go on in a folder.

        Raises:
            OtherRun: the folder is another run's.
        """
        self._record = work / "run.json"
        self._plan = json.loads(json.dumps(plan))  # as it will be read again
        self._finished: dict[str, float] = {}
        self._changed = False  # what comes after a stage that was done now is done again, too
        work.mkdir(parents=True, exist_ok=True)
        if self._record.exists():
            found = json.loads(self._record.read_text())
            if found["plan"] != self._plan:
                raise OtherRun(work)
            self._finished = found["finished"]
        self._write()

    def stage(self, name: str, do: Callable[[], None]) -> None:
        """Do a stage, unless it is finished and so is all before it."""
        if name in self._finished and not self._changed:
            print(f"{name}: finished before, in {self._finished[name]:.0f} s", flush=True)
            return
        print(f"{name}:", flush=True)
        began = time.monotonic()
        do()
        self._changed = True
        self._finished[name] = round(time.monotonic() - began, 1)
        self._write()
        print(f"{name}: finished in {self._finished[name]:.0f} s", flush=True)

    def _write(self) -> None:
        # In one go: a record cut off in the middle would lose the run.
        fresh = self._record.with_suffix(".new")
        fresh.write_text(json.dumps({"plan": self._plan, "finished": self._finished}, indent=2))
        fresh.replace(self._record)
