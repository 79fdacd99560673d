"""Keeps a group of ranks serving: runs the ledger's generations on it, replaces it when lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import structlog

from ditcast_runtime import crash_report, recovery
from ditcast_runtime.accepted import Generation
from ditcast_runtime.change import Change, Pending
from ditcast_runtime.config import Configuration, EngineConfig
from ditcast_runtime.errors import (
    ChangeRefused,
    ConfigError,
    RanksLost,
    ReloadFailed,
    RuntimeFailure,
)
from ditcast_runtime.events import Restarted
from ditcast_runtime.generation import State
from ditcast_runtime.group import CannotLoad, Group, GroupLost
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.loaded_adapters import AdapterChange, LoadedAdapters
from ditcast_runtime.messages import Configure, Facts, Failed
from ditcast_runtime.runner import Runner
from ditcast_runtime.settings import CacheSettings, Disabled, Problem

log = structlog.get_logger()

_UNKNOWN_SECONDS = 10.0
"""What a start is taken to last before any was measured."""

_MASK_STEPS = 28
"""Steps for which a ready-made step mask is laid out to see that it can be; any from 8 would do."""

MakeGroup = Callable[[int, Configuration], Group]
"""Makes the group of an epoch, for a configuration."""


class _Reload(Exception):
    """Leaves the group, because the next one is to have another configuration."""


class Dispatcher:
    """Runs one generation after another; `run` returns once it has drained.

    `draining` set and `ledger.work` set make it return when nothing waits any more; the same wakes
    it for a `change`.
    """

    def __init__(
        self,
        config: EngineConfig,
        ledger: Ledger,
        runner: Runner,
        adapters: LoadedAdapters,
        make_group: MakeGroup,
        configuration: Callable[[], Configuration],
        on_serving: Callable[[Facts], None],
        on_restarting: Callable[[], None],
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._runner = runner
        self._adapters = adapters
        self._make_group = make_group
        self._configuration = configuration
        self._on_serving = on_serving
        self._on_restarting = on_restarting
        self._group: Group | None = None
        self._number = 0
        self._epoch = 0
        self._served = False
        self._losses: deque[float] = deque(maxlen=config.crash_loop_losses)
        self._start_seconds = _UNKNOWN_SECONDS
        self.draining = False
        self.change: Pending | None = None
        """The one that waits for its turn between two generations."""
        self._reloading: Change | None = None

    @property
    def start_estimate(self) -> timedelta:
        """How long a start is likely to take: what the last one took."""
        return timedelta(seconds=self._start_seconds)

    def refuse_change(self, failure: RuntimeFailure) -> None:
        """Tell a writer that still waits that its change will never come into force."""
        for change in (self.change, self._reloading):
            if change is not None:
                change.fail(failure)
        self.change = self._reloading = None

    def leave(self, generation: Generation) -> None:
        """Ask the ranks to leave the generation that runs, at its next step boundary."""
        if self._group is not None:
            self._group.cancel(generation.number)

    async def run(self) -> None:
        """Serve until drained, with a fresh group after each loss and each reload.

        Raises:
            ConfigError: the ranks cannot serve this model with these settings.
            RanksLost: the first group was lost before it served, or one after the other.
        """
        while True:
            self._epoch += 1
            wanted = self._reloading.wanted if self._reloading else self._configuration()
            self._group = group = self._make_group(self._epoch, wanted)
            try:
                await self._serve(group)
                await group.stop()
            except _Reload:
                self._on_restarting()
                await group.stop()
            except GroupLost as lost:
                await self._lose(group, lost)
            except CannotLoad as cannot:
                self._cannot_load(cannot)
            else:
                return
            finally:
                await group.kill()

    async def _serve(self, group: Group) -> None:
        """Start the group, then run what waits; returns when it has drained."""
        began = time.monotonic()
        self._ledger.estimates.serving_at = began + self._start_seconds
        facts = await group.start()
        # Those that a reload cannot take along make it fail; the first ranks must hold all of them.
        required = self._reloading is not None or not self._served
        await self._adapters.restore(group, self._next_number, required=required)
        self._ledger.estimates.serves(facts.separate_cfg)
        self._start_seconds = time.monotonic() - began
        self._served = True
        log.info("serving", epoch=group.epoch, seconds=round(self._start_seconds, 1))
        reloaded, self._reloading = self._reloading, None
        if reloaded is not None:
            self._ledger.estimates.forget()
        if reloaded is not None and not reloaded.succeed():
            # Its writer has gone: the group has settings that nobody may ever see in force.
            raise _Reload
        self._on_serving(facts)
        while (generation := await self._next(group)) is not None:
            await self._run(group, generation)

    async def _next(self, group: Group) -> Generation | None:
        """Wait for the next generation, changing the configuration meanwhile; None once drained."""
        while True:
            if group.explanation:
                raise GroupLost(group.explanation)
            if self.change is not None and not self._must_wait(self.change):
                change, self.change = self.change, None
                await self._apply(group, change)
                continue
            generation = self._ledger.take()
            if generation is not None or self.draining:
                return generation
            self._ledger.work.clear()
            await self._ledger.work.wait()

    def _must_wait(self, change: Pending) -> bool:
        """Say whether a generation that begins again still needs what would be removed."""
        if not isinstance(change, AdapterChange) or change.loads:
            return False
        return any(
            use.name == change.adapter.name
            for generation in self._ledger.restarting
            for use in generation.parameters.adapters
        )

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    async def _run(self, group: Group, generation: Generation) -> None:
        if await self._runner.run(group, generation, self._next_number()):
            self._losses.clear()
        self._ledger.running = None

    async def _apply(self, group: Group, change: Pending) -> None:
        """Put a change into force on all ranks or none; `_Reload` where that takes new ranks."""
        if change.given_up:
            return
        try:
            match change:
                case Change():
                    await self._configure(group, change)
                case AdapterChange():
                    await self._adapters.apply(group, change, self._next_number)
        except GroupLost as lost:
            # Once is chance: it waits for the next ranks. What loses them twice would go on so.
            if change.interrupted:
                reason = f"the ranks were lost with it: {lost.explanation}"
                change.fail(ChangeRefused((Problem(change.subject, reason, "unsupported"),)))
            elif self.change is None:
                change.interrupted, self.change = True, change
            raise

    async def _configure(self, group: Group, change: Change) -> None:
        if change.reload:
            self._reloading = change
            raise _Reload
        current = self._configuration().cache
        if change.wanted.cache == current:
            change.succeed()
            return
        failures = await self._hold(group, change.wanted.cache)
        if failures:
            problems = {Problem(failure.field or "cache", failure.message) for failure in failures}
            change.fail(ChangeRefused(tuple(problems)))
        elif not change.succeed():
            await self._hold(group, current)

    async def _hold(self, group: Group, cache: CacheSettings) -> list[Failed]:
        """Make all ranks hold cache settings; give what those said that could not."""
        mask = None if isinstance(cache.method, Disabled) else cache.method.steps_computation_mask
        steps = len(mask) if isinstance(mask, tuple) else _MASK_STEPS
        command = Configure(
            epoch=group.epoch,
            number=self._next_number(),
            cache=cache,
            num_inference_steps=steps,
        )
        async with aclosing(group.run(command, None)) as reports:
            return [report async for report in reports if isinstance(report, Failed)]

    async def _lose(self, group: Group, lost: GroupLost) -> None:
        """Report a lost group, and begin again or end what ran on it.

        Raises:
            RanksLost: groups are lost again and again, or the first never served.
        """
        failure = RanksLost(group.epoch, lost.explanation, self.start_estimate)
        self._on_restarting()
        await self._report(group)
        if self._reloading is not None:
            self._give_reload_up(lost.explanation)
            return
        if self._ledger.running is not None:
            self._recover(self._ledger.running, failure)
        now = time.monotonic()
        self._losses.append(now)
        window = self._config.crash_loop_window
        in_a_row = len(self._losses) == self._losses.maxlen and now - self._losses[0] < window
        if in_a_row or not self._served:
            raise failure from lost

    def _recover(self, generation: Generation, unexplained: RanksLost) -> None:
        """Let it begin again before all others, or end it; nothing runs any more."""
        self._ledger.running = None
        if generation.state.final:
            return
        attempts = self._config.max_attempts
        failures = self._runner.failures
        world_size = self._config.world_size
        ending = recovery.verdict(generation, failures, world_size, attempts, unexplained)
        if ending is not None:
            self._ledger.end(generation, ending)
            return
        generation.attempt += 1
        generation.steps.clear()
        generation.state = State.RESTARTING
        generation.log.append(
            Restarted(
                attempt=generation.attempt,
                max_attempts=attempts,
                epoch=self._epoch + 1,
                reason=unexplained.explanation,
            )
        )
        self._ledger.put_back(generation)

    async def _report(self, group: Group) -> None:
        report = await group.examine()
        running = self._ledger.running
        if running is not None:
            report = replace(report, request_id=running.request_id, last_step=running.steps_done)
        log.error("the ranks were lost", **asdict(report))
        if self._config.crash_folder:
            try:
                crash_report.keep(report, Path(self._config.crash_folder))
            except OSError as error:
                log.warning("the crash report could not be kept", error=str(error))

    def _cannot_load(self, cannot: CannotLoad) -> None:
        if self._reloading is None:
            raise ConfigError((Problem("model", str(cannot)),)) from cannot
        self._give_reload_up(str(cannot))

    def _give_reload_up(self, cause: str) -> None:
        """Tell the writer; the next group has the configuration that is in force."""
        change, self._reloading = self._reloading, None
        if change is not None:
            change.fail(ReloadFailed(cause))
