"""Groups whose ranks are the test, under the real ledger, fleet, dispatchers and runners."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.runtime.fake_ranks import output_of
from tests.runtime.making import submission
from tests.service.fakes import CONFIGURATION, FACTS

from ditcast_runtime import groups
from ditcast_runtime.accepted import Generation
from ditcast_runtime.causes import RestartCause
from ditcast_runtime.change import Change, Pending
from ditcast_runtime.config import Adapter, Configuration, EngineConfig, needs_reload
from ditcast_runtime.crash_report import CrashReport, now
from ditcast_runtime.delivery import Delivery
from ditcast_runtime.errors import GenerationCancelled
from ditcast_runtime.events import EventKind, RankMemory
from ditcast_runtime.fleet import Fleet
from ditcast_runtime.group import CannotLoad, GroupLost, ReceivedOutput, RunReport
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.loaded_adapters import AdapterChange, LoadedAdapters
from ditcast_runtime.messages import (
    Ended,
    Facts,
    Failed,
    FailureKind,
    LoadAdapter,
    Order,
    Outcome,
    Run,
    UnloadAdapter,
)
from ditcast_runtime.preview_delivery import PreviewDelivery
from ditcast_runtime.timings import Starts

STYLE = Adapter(
    name="style",
    file="styles/style.safetensors",
    path="/styles/style.safetensors",
    weights_digest="ab",
    size_bytes=1,
)


class FakeGroup:
    """The ranks of one group in one epoch, as a test wants them."""

    def __init__(
        self,
        configuration: Configuration,
        epoch: int,
        index: int,
        fakes: Fakes,
        on_lost: Callable[[], None],
    ) -> None:
        self.configuration = configuration
        self.epoch = epoch
        self.index = index
        self.cause = RestartCause.DIED
        self.explanation = ""
        self.loaded = asyncio.Event()
        """Set when they may be through with loading."""
        self.free = asyncio.Event()
        """Set when they may be through with what they run."""
        self.through = asyncio.Event()
        """Set when rank 0 may send what it made: a last vote is missing then."""
        self.runs: list[str] = []
        """The ids of what they were told to run; of a batch the first."""
        self.batches: list[list[str]] = []
        self.left: set[int] = set()
        """Which of the present batch are to be left."""
        self.cancels: list[int] = []
        """The numbers of all that were to be left."""
        self.orders: list[Order] = []
        self.adapters: list[str] = []
        self.gone = False
        self._commands: dict[int, Run | Order] = {}
        self._number = 0
        self._fakes = fakes
        self._on_lost = on_lost

    async def start(self) -> Facts:
        """Load, as the test has planned it."""
        if not self._fakes.loads_at_once:
            await self.loaded.wait()
        failure = self._fakes.start_failures.pop(self.epoch, None)
        failure = failure or self._fakes.load_failures.get(self.index)
        if failure is not None:
            raise failure
        return FACTS

    def begin(self, command: Run | Order, pixels: int | None = None) -> None:
        """Note what they were told to do."""
        _ = pixels
        self._commands[command.number] = command
        if isinstance(command, Run):
            self.runs.append(command.request_id)
            self.batches.append([each.request_id for each in command.batch])
        else:
            self.orders.append(command)

    async def reports(
        self, number: int, limit: float | None = None
    ) -> AsyncGenerator[RunReport, None]:
        """Carry out an order at once, or run a generation until it is told to end."""
        _ = limit
        command, outcome = self._commands[number], Outcome.DONE
        if isinstance(command, Run):
            self._number = number
            self.left.clear()
            if await self._sends_output():
                yield self._output(command)
            await self.free.wait()
            outcome = Outcome.CANCELLED
        else:
            # Long enough for the others to see that it is being tried.
            await settled(20)
            if self.index in self._fakes.lose_orders:
                self.lose()
            elif self.index in self._fakes.refuse_orders:
                outcome = Outcome.VETOED
                yield _failed(command)
            else:
                self._hold(command)
        if self.explanation:
            raise GroupLost(self.cause, self.explanation)
        yield Ended(
            epoch=self.epoch,
            number=command.number,
            rank=0,
            outcome=outcome,
            steps=0,
            memory=RankMemory(rank=0, peak_bytes=1, free_bytes=1),
            denoise_seconds=0.0,
            decode_seconds=0.0,
            components=("transformer",),
        )

    async def _sends_output(self) -> bool:
        """Wait until they are free, or rank 0 sends what it made; give whether that."""
        waits = {asyncio.ensure_future(each.wait()) for each in (self.free, self.through)}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        return self.through.is_set()

    def _output(self, command: Run) -> ReceivedOutput:
        pixels = os.memfd_create("test-output", os.MFD_CLOEXEC)
        return ReceivedOutput(output_of(self.epoch, command.number), pixels)

    def _hold(self, order: Order) -> None:
        if isinstance(order, LoadAdapter):
            self.adapters.append(order.name)
        if isinstance(order, UnloadAdapter):
            self.adapters.remove(order.name)

    def lose(self) -> None:
        """Die."""
        self.explanation = "rank 0 was killed"
        self.free.set()
        self._on_lost()

    def cancel(self, number: int, index: int = 0) -> None:
        """Leave what runs, once all of the batch are to be left."""
        self.cancels.append(number)
        if number == self._number:
            self.left.add(index)
            if len(self.left) == len(self.batches[-1]):
                self.free.set()

    async def examine(self) -> CrashReport:
        """Say nothing of what is left."""
        return CrashReport(
            time=now(),
            group=self.index,
            epoch=self.epoch,
            cause=self.cause,
            explanation=self.explanation,
            ranks=(),
        )

    async def stop(self) -> None:
        """Leave."""

    async def make_way(self) -> None:
        """Leave."""

    async def kill(self) -> None:
        """Die for good."""
        self.gone = True


def _failed(order: Order) -> Failed:
    return Failed(
        epoch=order.epoch,
        number=order.number,
        rank=0,
        step=0,
        kind=FailureKind.REFUSED,
        error_type="ValueError",
        message="no",
    )


class Fakes:
    """What the ranks that are made are to do, and all that were made."""

    def __init__(self) -> None:
        self.made: list[FakeGroup] = []
        self.loads_at_once = True
        self.start_failures: dict[int, GroupLost | CannotLoad] = {}
        """By epoch."""
        self.load_failures: dict[int, GroupLost | CannotLoad] = {}
        """By index: each time."""
        self.refuse_orders: set[int] = set()
        self.lose_orders: set[int] = set()

    def of(self, index: int) -> FakeGroup:
        """Give the newest ranks of a group."""
        return [each for each in self.made if each.index == index][-1]

    def with_run(self, name: str) -> tuple[FakeGroup, FakeGroup]:
        """Give the ranks that have a generation now, and those of the other of two groups."""
        [index] = [index for index in (0, 1) if self.of(index).runs[-1:] == [name]]
        return self.of(index), self.of(1 - index)


class Running:
    """Groups that run, with what an engine keeps for them."""

    def __init__(self, config: EngineConfig, folder: Path, fakes: Fakes) -> None:
        self.fakes = fakes
        self.config = config
        self.configurations = [CONFIGURATION]
        self.restarts: list[tuple[int, RestartCause]] = []
        self.ledger = Ledger(config, folder, self._leave)
        self.adapters = LoadedAdapters(config.adapters)
        starts = Starts()
        pool = ThreadPoolExecutor(1)
        nothing = cast("Any", None)
        self.delivery = Delivery(nothing, pool, 1024, starts, config.groups + 1)
        self.groups = groups.Groups(
            config,
            Fleet(config, self.ledger, self.adapters),
            self.delivery,
            lambda: PreviewDelivery(nothing, pool),
            starts,
            groups.RankSettings(folder=folder, json_logs=True, log_level="info", attachments=None),
            lambda: self.configurations[-1],
            groups.Listeners(
                serving=lambda _: None,
                restarting=lambda index, cause: self.restarts.append((index, cause)),
                progress=lambda _: None,
                delivered=self.ledger.succeed,
            ),
        )
        self.task = asyncio.ensure_future(self.groups.run())

    async def submit(self, *names: str, **more: Any) -> list[Generation]:  # noqa: ANN401 (fields)
        """Have generations wait or run."""
        made = [self.ledger.admit(submission(name, digest=name.encode(), **more)) for name in names]
        await settled()
        return made

    async def events(self, generation: Generation) -> list[EventKind]:
        """Give all events of one that ends as made-up ranks end it."""
        seen: list[EventKind] = []
        with suppress(GenerationCancelled):
            async for event in generation.follow():
                assert event is not None
                seen.append(event.kind)
        return seen

    def propose(self, wanted: Configuration) -> tuple[Change, asyncio.Future[None]]:
        """Ask for another configuration; give what its writer waits for."""
        reload = needs_reload(self.configurations[-1], wanted)
        change = Change(wanted, reload=reload, commit=self._commit)
        return change, self._wait(change)

    def propose_adapter(self, *, loads: bool) -> tuple[AdapterChange, asyncio.Future[None]]:
        """Ask for an adapter, or for its end."""
        change = AdapterChange(STYLE, loads=loads, commit=self.adapters.commit)
        return change, self._wait(change)

    def _leave(self, generation: Generation) -> None:
        self.groups.leave(generation)

    def _wait(self, change: Pending) -> asyncio.Future[None]:
        self.groups.propose(change)
        return asyncio.ensure_future(change.wait())

    def _commit(self, wanted: Configuration) -> None:
        revision = self.configurations[-1].revision + 1
        self.configurations.append(replace(wanted, revision=revision))


async def settled(turns: int = 400) -> None:
    """Let everybody do what can be done without waiting for the test."""
    for _ in range(turns):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    fakes: Fakes | None = None,
    **settings: Any,  # noqa: ANN401
) -> AsyncIterator[Running]:
    """Run groups, two of them unless it is said otherwise, and end them."""
    fakes = fakes or Fakes()

    def make(
        config: EngineConfig,
        configuration: Configuration,
        epoch: int,
        folder: Path,
        *,
        index: int,
        on_lost: Callable[[], None],
        **more: object,
    ) -> FakeGroup:
        _ = config, folder, more
        made = FakeGroup(configuration, epoch, index, fakes, on_lost)
        fakes.made.append(made)
        return made

    monkeypatch.setattr(groups, "Group", make)
    made = Running(EngineConfig(**{"groups": 2, **settings}), folder, fakes)
    await settled()
    yield made
    made.task.cancel()
    await asyncio.wait({made.task})
