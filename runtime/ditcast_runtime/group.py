"""Starts, watches and ends one group of ranks: all of them together, under one epoch.

A group is never mended: what loses one rank loses the group, which is killed whole and reaped. Of
ranks that others start, it gathers those that attach, and in place of killing them lets go of them.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

import structlog

from ditcast_runtime.causes import RestartCause
from ditcast_runtime.config import Configuration, EngineConfig
from ditcast_runtime.crash_report import CrashReport, now
from ditcast_runtime.hosts.attachments import Attachments
from ditcast_runtime.launches import Launches, SharedFile, TorchrunStore
from ditcast_runtime.member import AttachedMember, Member, how_it_ended
from ditcast_runtime.messages import (
    Alive,
    Cancel,
    CannotServe,
    Denoising,
    Ended,
    Facts,
    Failed,
    FailureKind,
    Loading,
    Order,
    Output,
    Preview,
    Ready,
    Report,
    Run,
    Shutdown,
    Step,
    WarmingUp,
)

log = structlog.get_logger()

_EXIT_NOTICE_SECONDS = 1.0
"""How long a rank's exit status may take after its channel closed: it says more than that."""


_STACKS_SECONDS = 0.5
"""How long living ranks of a lost group may take to write their stacks."""


class GroupLost(Exception):
    """The group is of no use any more; it has to be killed.

    Attributes:
        cause: what sort of loss it is.
        explanation: what was seen, for the log and the status.
    """

    def __init__(self, cause: RestartCause, explanation: str) -> None:
        self.cause = cause
        self.explanation = explanation
        super().__init__(explanation)


class CannotLoad(Exception):
    """The ranks cannot serve this model with these settings, and never will.

    Attributes:
        reason: the first rank's words.
    """

    def __init__(self, rank: int, error_type: str, reason: str) -> None:
        self.reason = reason
        super().__init__(f"rank {rank}: {error_type}: {reason}")


@dataclass(frozen=True, slots=True)
class ReceivedOutput:
    """Pixels as they came: the descriptor is its holder's to close."""

    message: Output
    descriptor: int


RunReport = Denoising | Step | Preview | ReceivedOutput | Failed | Ended


class Group:
    """One group. `start`, then any number of commands one after another, then `stop` or `kill`.

    Of each command `begin` comes first and then `reports`; the next may begin before its turn.
    """

    def __init__(  # noqa: PLR0913 (half of them by name alone)
        self,
        config: EngineConfig,
        configuration: Configuration,
        epoch: int,
        folder: Path,
        *,
        index: int = 0,
        json_logs: bool,
        log_level: str,
        on_progress: Callable[[Loading | WarmingUp], None],
        on_lost: Callable[[], None],
        attachments: Attachments | None = None,
    ) -> None:
        self.epoch = epoch
        self.index = index
        self._attachments = attachments
        self._config = config
        self._store = folder / f"epoch-{epoch}"
        self._launches = Launches(config, configuration, epoch, index, json_logs, log_level)
        self._on_progress = on_progress
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._members: list[Member | AttachedMember] = []
        self._reports: asyncio.Queue[RunReport | Ready | GroupLost | CannotLoad] = asyncio.Queue()
        self._warming: set[int] = set()
        self._numbers: deque[int] = deque()
        """Of the command that is carried out, and of the one that was sent ahead."""
        self._early: list[RunReport] = []
        """Reports about the latter, while some about the former are still to come."""
        self._timer: asyncio.TimerHandle | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._over = False
        self._limited_by: RestartCause | None = None
        self.cause = RestartCause.DIED
        self.explanation = ""
        """Why the group is lost, with its `cause`; empty while it is not."""

    async def start(self) -> Facts:
        """Start all ranks and wait until each is loaded and warmed up; give rank 0's facts.

        Raises:
            CannotLoad: a rank says that it cannot serve this model with these settings.
            GroupLost: a rank died, or a limit passed.
        """
        if self._attachments is None:
            self._limit_loading()
            for rank in range(self._config.world_size):
                await self._spawn(rank)
        else:
            # No limit: it is up to others when these come, and health says what is true meanwhile.
            await self._gather(self._attachments)
            self._limit_loading()
        self._watchers.append(asyncio.create_task(self._watch_alive()))
        found: dict[int, Facts] = {}
        while len(found) < self._config.world_size:
            report = await self._next()
            if isinstance(report, Ready):
                found[report.rank] = report.facts
        self._no_limit()
        return found[0]

    async def examine(self) -> CrashReport:
        """Find out, before the group is killed, how each rank ended or where it is stuck."""
        for member in self._members:
            member.ask_for_stacks()
        await asyncio.sleep(_STACKS_SECONDS)
        return CrashReport(
            time=now(),
            group=self.index,
            epoch=self.epoch,
            cause=self.cause,
            explanation=self.explanation,
            ranks=tuple(member.remains() for member in self._members),
        )

    def begin(self, command: Run | Order, pixels: int | None = None) -> None:
        """Send the ranks a command, which they begin once they are through with what they have.

        `pixels` is the descriptor that holds the input pictures.
        """
        self._numbers.append(command.number)
        self._members[0].channel.send(command, pixels)

    async def reports(
        self, number: int, step_limit: float | None = None
    ) -> AsyncGenerator[RunReport, None]:
        """Give every report about the oldest command that began, until each rank is through.

        `step_limit` bounds each step in seconds; None while too few of its kind are known.

        Raises:
            GroupLost: the ranks died or are stuck; nothing more will come.
        """
        self._limit(
            self._config.first_steps_timeout,
            RestartCause.STEP_TIMEOUT,
            "the preparation took too long",
        )
        ended = 0
        failed = False
        while ended < len(self._members):
            report = await self._next()
            if isinstance(report, Ready):
                continue
            if isinstance(report, Ended):
                ended += 1
            if isinstance(report, Failed) and report.kind is FailureKind.SETTINGS_DIFFER:
                self._lose(
                    RestartCause.INCONSISTENT,
                    f"rank {report.rank} does not hold what it was told to",
                )
                raise GroupLost(self.cause, self.explanation)
            failed = failed or isinstance(report, Failed)
            if failed or ended:
                # Set once: each report of a rank that arrives must not prolong the wait.
                self._limit_once(
                    self._config.vote_timeout,
                    RestartCause.VOTE_TIMEOUT,
                    "not all ranks came to the last vote",
                )
            else:
                self._watch_step(report, step_limit)
            yield report
        self._numbers.remove(number)
        for report in self._early:
            self._reports.put_nowait(report)
        self._early.clear()
        self._no_limit()

    def cancel(self, number: int, index: int = 0) -> None:
        """Ask the ranks to leave one of a batch at the next boundary; nothing if it is over."""
        if number in self._numbers and not self._over:
            self._members[0].channel.send(Cancel(epoch=self.epoch, number=number, index=index))

    async def stop(self) -> None:
        """Let idle ranks leave, and kill those that do not."""
        self._over = True
        if self._members and not self.explanation:
            self._members[0].channel.send(Shutdown(epoch=self.epoch))
            leaving = [member.exit_code() for member in self._members]
            try:
                async with asyncio.timeout(self._config.shutdown_timeout):
                    await asyncio.gather(*leaving)
            except TimeoutError:
                log.warning("ranks did not leave in time", epoch=self.epoch)
        await self.kill()

    async def make_way(self) -> None:
        """End it because another takes its place."""
        if self._attachments is None:
            await self.stop()
        else:
            # Told to leave, these would go for good: nobody starts again what ended with 0.
            await self.kill()

    async def kill(self) -> None:
        """Kill what is left of the group and reap every process."""
        self._over = True
        self._no_limit()
        for watcher in self._watchers:
            watcher.cancel()
        for member in self._members:
            member.kill()
        for member in self._members:
            await member.reap()
        unread = [self._reports.get_nowait() for _ in range(self._reports.qsize())]
        for report in (*unread, *self._early):
            if isinstance(report, ReceivedOutput):
                os.close(report.descriptor)
        self._early.clear()
        self._store.unlink(missing_ok=True)

    async def _spawn(self, rank: int) -> None:
        member = await Member.spawn(
            rank,
            self._launches.threads,
            self._store.with_name(f"{self._store.name}-rank-{rank}.stacks"),
            lambda report, descriptor: self._receive(rank, report, descriptor),
            lambda reason: self._channel_closed(rank, reason),
        )
        self._members.append(member)
        store = SharedFile(path=str(self._store))
        member.channel.send(self._launches.of(rank, store, str(member.stacks)))

    async def _gather(self, attachments: Attachments) -> None:
        store = TorchrunStore(prefix=f"ditcast/{attachments.instance}/{self.epoch}")
        for rank, recruit in enumerate(await attachments.gather(self.epoch)):
            heard, left = partial(self._receive, rank), partial(self._channel_closed, rank)
            member = AttachedMember(rank, recruit, heard, left)
            self._members.append(member)
            member.channel.send(self._launches.of(rank, store, ""))

    def _receive(self, rank: int, report: Report, descriptor: int | None) -> None:
        if report.epoch != self.epoch:
            # A rank of another group can only be a mistake; nothing of it may count here.
            self._lose(RestartCause.INCONSISTENT, f"rank {rank} speaks for epoch {report.epoch}")
            if descriptor is not None:
                os.close(descriptor)
            return
        self._members[rank].saw(report)
        match report:
            case Alive():
                pass
            case Loading():
                self._goes_on(report)
            case WarmingUp():
                self._warming.add(rank)
                self._limit(
                    self._config.warm_up_timeout,
                    RestartCause.WARM_UP_TIMEOUT,
                    "the warm-up took too long",
                )
                if len(self._warming) == self._config.world_size:
                    self._on_progress(report)
            case CannotServe():
                self._reports.put_nowait(CannotLoad(rank, report.error_type, report.reason))
            case Ready():
                self._reports.put_nowait(report)
            case Denoising() | Step() | Preview() | Output() | Failed() | Ended():
                self._pass_on(rank, report, descriptor)
            case _:
                assert_never(report)

    def _limit_loading(self) -> None:
        seconds = self._config.load_timeout
        self._limit(seconds, RestartCause.LOAD_TIMEOUT, "loading showed no progress")

    def _goes_on(self, report: Loading) -> None:
        # The warm-up has a limit of its own, for all of it.
        if report.rank not in self._warming:
            self._limit_loading()
        self._on_progress(report)

    def _pass_on(
        self,
        rank: int,
        report: Denoising | Step | Preview | Output | Failed | Ended,
        descriptor: int | None,
    ) -> None:
        if report.number not in self._numbers:
            # Of a run that is over: counted now, it could end the one that runs.
            if descriptor is not None:
                os.close(descriptor)
        elif not isinstance(report, Output):
            self._keep(report.number, report)
        elif descriptor is None:
            self._lose(RestartCause.INCONSISTENT, f"rank {rank} sent an output without its pixels")
        else:
            self._keep(report.number, ReceivedOutput(report, descriptor))

    def _keep(self, number: int, report: RunReport) -> None:
        if number == self._numbers[0]:
            self._reports.put_nowait(report)
        else:
            # Rank 0 has begun what was sent ahead; what another said before is not read yet.
            self._early.append(report)

    async def _next(self) -> RunReport | Ready:
        report = await self._reports.get()
        if isinstance(report, (GroupLost, CannotLoad)):
            raise report
        return report

    def _watch_step(self, report: RunReport, step_limit: float | None) -> None:
        if isinstance(report, Step) and report.step >= report.total_steps:
            self._limit(
                self._config.decode_timeout, RestartCause.DECODE_TIMEOUT, "decoding took too long"
            )
        elif isinstance(report, (Denoising, Step)):
            limit = step_limit or self._config.first_steps_timeout
            self._limit(limit, RestartCause.STEP_TIMEOUT, f"no step within {limit:.1f} s")

    def _limit(self, seconds: float, cause: RestartCause, explanation: str) -> None:
        self._no_limit()
        self._timer = self._loop.call_later(seconds, self._lose, cause, explanation)
        self._limited_by = cause

    def _limit_once(self, seconds: float, cause: RestartCause, explanation: str) -> None:
        if self._timer is None or self._limited_by is not cause:
            self._limit(seconds, cause, explanation)

    def _no_limit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _watch_alive(self) -> None:
        """Lose the group when a rank is silent: stopped, or stuck while it holds the GIL."""
        while True:
            await asyncio.sleep(1.0)
            for rank, member in enumerate(self._members):
                silence = member.silent_seconds or 0.0
                if silence > self._config.alive_timeout:
                    self._lose(
                        RestartCause.SILENT, f"rank {rank} gave no sign of life for {silence:.0f} s"
                    )

    def _channel_closed(self, rank: int, reason: str) -> None:
        # Everything that the rank had sent is read by now; its exit status says more than that.
        self._watchers.append(asyncio.create_task(self._name_loss(rank, reason)))

    async def _name_loss(self, rank: int, reason: str) -> None:
        try:
            async with asyncio.timeout(_EXIT_NOTICE_SECONDS):
                code = await self._members[rank].exit_code()
        except TimeoutError:
            code = None
        if code is None:
            self._lose(RestartCause.DISCONNECTED, f"rank {rank} closed its channel: {reason}")
        else:
            self._lose(RestartCause.DIED, f"rank {rank} was {how_it_ended(code)}")

    def _lose(self, cause: RestartCause, explanation: str) -> None:
        if self._over or self.explanation:
            return
        self.cause, self.explanation = cause, explanation
        self._reports.put_nowait(GroupLost(cause, explanation))
        self._on_lost()
