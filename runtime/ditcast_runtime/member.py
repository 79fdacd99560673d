"""One rank as the service sees it: a process of its own session, and the channel to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from ditcast_runtime.channel import ServiceChannel
from ditcast_runtime.crash_report import RankRemains, read_stacks, resident_bytes
from ditcast_runtime.messages import Alive, Report


class Member:
    """One rank's process, its channel, and when it was last heard of."""

    def __init__(
        self, rank: int, process: asyncio.subprocess.Process, channel: ServiceChannel, stacks: Path
    ) -> None:
        self.rank = rank
        self.process = process
        self.channel = channel
        self.stacks = stacks
        self._last_report = ""
        self._last_seen: float | None = None
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def spawn(
        cls,
        rank: int,
        threads: int,
        stacks: Path,
        on_report: Callable[[Report, int | None], None],
        on_closed: Callable[[str], None],
    ) -> Member:
        """Start the process with one end of a new socketpair."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ditcast_runtime.rank",
                "--channel",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                # Of its own, so that a terminal's Ctrl-C reaches the service alone.
                start_new_session=True,
                env=_environment(threads),
            )
        return cls(rank, process, ServiceChannel(ours, on_report, on_closed), stacks)

    def saw(self, report: Report) -> None:
        """Remember that it is alive, and what it said last."""
        self._last_seen = self._loop.time()
        if not isinstance(report, Alive):
            self._last_report = type(report).__name__

    @property
    def silent_seconds(self) -> float | None:
        """Since its last report; None before the first, while it only imports."""
        return None if self._last_seen is None else self._loop.time() - self._last_seen

    def ask_for_stacks(self) -> None:
        """Have a living rank write the stacks of all its threads; a stopped one does not.

        Not before its first report: until it has prepared for the signal, it would die of it.
        """
        if self.process.returncode is None and self._last_report:
            self.process.send_signal(signal.SIGUSR1)

    def remains(self) -> RankRemains:
        """Describe what is left of it."""
        silence = self.silent_seconds
        return RankRemains(
            rank=self.rank,
            process_id=self.process.pid,
            ended=how_it_ended(self.process.returncode),
            last_report=self._last_report,
            silent_seconds=None if silence is None else round(silence, 1),
            resident_bytes=resident_bytes(self.process.pid),
            stacks=read_stacks(self.stacks),
        )

    def kill(self) -> None:
        """Kill whatever is left of its session, and close the channel."""
        if self.process.returncode is None:
            # It may have been reaped already, with its return code still on the way to us.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.channel.close()

    async def reap(self) -> None:
        """Wait for its end and remove its file."""
        await self.process.wait()
        self.stacks.unlink(missing_ok=True)


def how_it_ended(code: int | None) -> str:
    """Say how a process ended, from its return code."""
    if code is None:
        return "alive"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"gone with exit code {code}"


def _environment(threads: int) -> dict[str, str]:
    """Give the ranks' environment: the service's, with what has to be set before torch loads."""
    quiet = {
        # It says several lines at each switch of the cache, at a level that a server keeps on.
        "CACHE_DIT_LOG_LEVEL": "error",
    }
    needed = {
        "OMP_NUM_THREADS": str(threads),
        # Threads that spin while they wait made two ranks on shared cores 8 times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        # gloo and NCCL would otherwise listen on whatever the host's name resolves to.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return quiet | os.environ | needed
