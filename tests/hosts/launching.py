"""torchrun on one host, started again whenever it fails, as a service manager would."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

STOP_SECONDS = 60.0


def gone(rank: psutil.Process) -> bool:
    """Say whether a rank has ended; its torchrun may be too busy with the others to reap it."""
    try:
        return not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Torchrun:
    """Ranks that attach to a service at `service`; made by the constructor, ended by `wait`."""

    def __init__(
        self,
        name: str,
        folder: Path,
        rendezvous: Sequence[str],
        attach: Sequence[str],
        within: Sequence[str] = (),
    ) -> None:
        """Start it, within another command if one is given."""
        command = [
            *(*within, sys.executable, "-m", "torch.distributed.run"),
            *("--rdzv-backend", "c10d", "--max-restarts", "1000", *rendezvous),
            *("-m", "ditcast_runtime.attach", *attach),
        ]
        self.log = folder / f"torchrun-{name}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", f"until {shlex.join(command)}; do sleep 1; done"],
                stdout=log,
                stderr=log,
                env={key: value for key, value in os.environ.items() if "DITCAST" not in key},
                start_new_session=True,
            )

    def ranks(self) -> list[psutil.Process]:
        """List its ranks' processes in their order."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                rank = process.environ().get("RANK")
            except psutil.Error:
                continue
            if rank is not None:
                found[int(rank)] = process
        return [found[rank] for rank in sorted(found)]

    def wait(self) -> int:
        """Wait until it is through, because its ranks were told to leave."""
        return self.process.wait(STOP_SECONDS)

    def clear_away(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process.poll() is not None:
            return
        left = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def expect_ranks_gone(self, ranks: Sequence[psutil.Process], seconds: float) -> None:
        """Fail if a rank is still there after so long."""
        limit = time.monotonic() + seconds
        while not all(map(gone, ranks)) and time.monotonic() < limit:
            time.sleep(0.05)
        assert all(map(gone, ranks)), self.tail()

    def tail(self) -> str:
        """Give the end of its log."""
        return self.log.read_text("utf-8", errors="replace")[-6000:]
