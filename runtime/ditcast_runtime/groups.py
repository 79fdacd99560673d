"""All groups of ranks behind one ledger: makes them, runs them side by side, ends them together.

Whichever is free takes the next generation. The first loads alone, as it finds out whether the
model can be served, and brings the weights into the page cache; the others then load at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ditcast_runtime.accepted import Generation
from ditcast_runtime.causes import RestartCause
from ditcast_runtime.change import Pending
from ditcast_runtime.config import Configuration, EngineConfig
from ditcast_runtime.delivery import Delivery
from ditcast_runtime.dispatcher import Dispatcher
from ditcast_runtime.errors import RuntimeFailure
from ditcast_runtime.fleet import Fleet
from ditcast_runtime.group import Group
from ditcast_runtime.hosts.attachments import Attachments
from ditcast_runtime.messages import Facts, Loading, WarmingUp
from ditcast_runtime.preview_delivery import PreviewDelivery
from ditcast_runtime.runner import Runner
from ditcast_runtime.timings import Starts


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSettings:
    """What all ranks are started with, besides the engine's settings."""

    folder: Path
    """Private to the service."""
    json_logs: bool
    log_level: str
    attachments: Attachments | None
    """Where ranks come from that others start; None: the service starts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listeners:
    """Who is told what becomes of the groups."""

    serving: Callable[[Facts], None]
    """Called each time that a group begins to serve."""
    restarting: Callable[[int, RestartCause], None]
    """Called with a group's index when its ranks are lost or make way."""
    progress: Callable[[Loading | WarmingUp], None]
    """Called for ranks that start while no group serves."""
    delivered: Callable[[Generation], None]
    """Called with a generation whose outputs are on their way."""


class Groups:
    """The groups, from the first start to the end."""

    def __init__(
        self,
        config: EngineConfig,
        fleet: Fleet,
        delivery: Delivery,
        make_previews: Callable[[], PreviewDelivery],
        starts: Starts,
        ranks: RankSettings,
        configuration: Callable[[], Configuration],
        listeners: Listeners,
    ) -> None:
        self._config = config
        self._starts = starts
        self._ranks = ranks
        self._listeners = listeners
        self._fleet = fleet
        self._previews = [make_previews() for _ in range(config.groups)]
        self._dispatchers = [
            Dispatcher(
                index,
                config,
                fleet,
                Runner(
                    config,
                    fleet.ledger,
                    delivery,
                    previews,
                    configuration,
                    fleet.may_begin,
                    listeners.delivered,
                ),
                self._make_group,
                configuration,
                listeners.serving,
                self._restarts,
            )
            for index, previews in enumerate(self._previews)
        ]

    @property
    def serving(self) -> Collection[int]:
        """The indices of those that take generations."""
        return self._fleet.serving

    @property
    def start_estimate(self) -> timedelta:
        """How long a start is likely to take: what the last one took."""
        return timedelta(seconds=self._fleet.start_seconds)

    async def run(self) -> None:
        """Serve until drained.

        Raises:
            ConfigError: the ranks cannot serve this model with these settings.
            RanksLost: the first ranks were lost before they served, or all groups one after the
                other.
        """
        tasks = [asyncio.create_task(each.run()) for each in self._dispatchers]
        try:
            await self._until_all_end(tasks)
        finally:
            await _end(tasks)

    def drain(self) -> None:
        """Have `run` return when nothing waits any more."""
        self._fleet.drain()

    def propose(self, change: Pending) -> None:
        """Put a change into force on all groups or none; its writer waits for it."""
        self._fleet.propose(change)

    def refuse_change(self, failure: RuntimeFailure) -> None:
        """Tell a writer that still waits that its change will never come into force."""
        if self._fleet.change is not None:
            self._fleet.refuse(self._fleet.change, failure)
        for each in self._dispatchers:
            each.refuse_change(failure)

    def leave(self, generation: Generation) -> None:
        """Ask the ranks that have a generation to leave it at its next step boundary."""
        for each in self._dispatchers:
            each.leave(generation)

    async def idle(self) -> None:
        """Wait until no preview is being encoded."""
        for each in self._previews:
            await each.idle()

    async def _until_all_end(self, tasks: list[asyncio.Task[None]]) -> None:
        waiting = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
            if self._fleet.finished:
                # Nobody waits for those that still load.
                _cancel(tasks[index] for index in range(len(tasks)) if index not in self.serving)

    def _make_group(self, index: int, epoch: int, configuration: Configuration) -> Group:
        if not self.serving:
            self._starts.load(time.monotonic())
        return Group(
            self._config,
            configuration,
            epoch,
            self._ranks.folder,
            index=index,
            json_logs=self._ranks.json_logs,
            log_level=self._ranks.log_level,
            on_progress=self._goes_on,
            on_lost=self._fleet.wake,
            attachments=self._ranks.attachments,
        )

    def _restarts(self, index: int, cause: RestartCause) -> None:
        self._fleet.leaves(index)
        if not self.serving:
            self._starts.load(time.monotonic())
        self._listeners.restarting(index, cause)

    def _goes_on(self, report: Loading | WarmingUp) -> None:
        if not self.serving:
            self._listeners.progress(report)


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel what still runs, and wait until its ranks are gone."""
    _cancel(tasks)
    await asyncio.gather(*tasks, return_exceptions=True)
