"""One rank as the service sees it: the channel to it, and its process where the service started it.

What others started is none of the service's to kill: closing its channel makes it leave.
"""

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
from ditcast_runtime.environment import rank_environment
from ditcast_runtime.hosts.attachments import Recruit
from ditcast_runtime.messages import Alive, Report

_INTERFACE = "lo"
"""Ranks of one host talk over nothing else."""


class Heard:
    """A rank's channel, and when it was last heard of."""

    def __init__(self, rank: int, channel: ServiceChannel) -> None:
        self.rank = rank
        self.channel = channel
        self._last_report = ""
        self._last_seen: float | None = None
        self._loop = asyncio.get_running_loop()

    def saw(self, report: Report) -> None:
        """Remember that it is alive, and what it said last."""
        self._last_seen = self._loop.time()
        if not isinstance(report, Alive):
            self._last_report = type(report).__name__

    @property
    def silent_seconds(self) -> float | None:
        """Since its last report; None before the first, while it only imports."""
        return None if self._last_seen is None else self._loop.time() - self._last_seen


class Member(Heard):
    """A rank whose process the service started."""

    def __init__(
        self, rank: int, process: asyncio.subprocess.Process, channel: ServiceChannel, stacks: Path
    ) -> None:
        super().__init__(rank, channel)
        self.process = process
        self.stacks = stacks

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
                "ditcast_runtime.rank_process",
                "--channel",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                # Of its own, so that a terminal's Ctrl-C reaches the service alone.
                start_new_session=True,
                env=rank_environment(os.environ, threads, _INTERFACE),
            )
        return cls(rank, process, ServiceChannel(ours, on_report, on_closed), stacks)

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

    async def exit_code(self) -> int | None:
        """Wait for its end."""
        return await self.process.wait()

    async def reap(self) -> None:
        """Wait for its end and remove its file."""
        await self.process.wait()
        self.stacks.unlink(missing_ok=True)


class AttachedMember(Heard):
    """A rank that others started, perhaps on another host."""

    def __init__(
        self,
        rank: int,
        recruit: Recruit,
        on_report: Callable[[Report, int | None], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._left = asyncio.Event()
        self._on_closed = on_closed
        self._recruit = recruit
        super().__init__(rank, ServiceChannel(recruit.end, on_report, self._closed))

    def _closed(self, reason: str) -> None:
        self._left.set()
        self._on_closed(reason)

    def ask_for_stacks(self) -> None:
        """Do nothing: its process is another's."""

    def remains(self) -> RankRemains:
        """Describe what is known of it."""
        silence = self.silent_seconds
        return RankRemains(
            rank=self.rank,
            host=self._recruit.peer,
            process_id=self._recruit.hello.process_id,
            ended="its channel closed" if self._left.is_set() else "its channel was open",
            last_report=self._last_report,
            silent_seconds=None if silence is None else round(silence, 1),
            resident_bytes=None,
            stacks="",
        )

    def kill(self) -> None:
        """Close the channel: it then leaves with a code other than 0, and is started again."""
        self._left.set()
        self.channel.close()

    async def exit_code(self) -> int | None:
        """Wait for the end of its channel; the code is known to whoever started it."""
        await self._left.wait()
        return None

    async def reap(self) -> None:
        """Do nothing: whoever started it does."""


def how_it_ended(code: int | None) -> str:
    """Say how a process ended, from its return code."""
    if code is None:
        return "alive"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"gone with exit code {code}"
