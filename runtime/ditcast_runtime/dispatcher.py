"""Keeps one group of ranks serving: runs the ledger's generations on it, replaces it when lost."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog

from ditcast_runtime import crash_report, recovery
from ditcast_runtime.accepted import Generation
from ditcast_runtime.batching import batch_key
from ditcast_runtime.causes import RestartCause
from ditcast_runtime.change import Change, Pending
from ditcast_runtime.config import Configuration, EngineConfig, needs_reload
from ditcast_runtime.errors import (
    ChangeRefused,
    ConfigError,
    RanksLost,
    ReloadFailed,
    RuntimeFailure,
)
from ditcast_runtime.fleet import Fleet
from ditcast_runtime.group import CannotLoad, Group, GroupLost
from ditcast_runtime.loaded_adapters import AdapterChange, HeldAdapters
from ditcast_runtime.messages import Configure, Facts, Failed
from ditcast_runtime.runner import Call, Runner
from ditcast_runtime.settings import CacheSettings, Disabled, Problem

log = structlog.get_logger()

_MASK_STEPS = 28
"""Steps for which a ready-made step mask is laid out to see that it can be; any from 8 would do."""

MakeGroup = Callable[[int, int, Configuration], Group]
"""Makes the ranks of the group of an index, in an epoch, for a configuration."""


@dataclass(frozen=True, slots=True)
class _Ranks:
    """Ranks that serve."""

    group: Group
    facts: Facts
    held: HeldAdapters
    loaded: Configuration
    """What they were loaded for."""


class _Reload(Exception):
    """Leaves the ranks, because the next ones are to have another configuration."""


class Dispatcher:
    """Runs generations and batches on one group; `run` returns once all have drained."""

    def __init__(
        self,
        index: int,
        config: EngineConfig,
        fleet: Fleet,
        runner: Runner,
        make_group: MakeGroup,
        configuration: Callable[[], Configuration],
        on_serving: Callable[[Facts], None],
        on_restarting: Callable[[int, RestartCause], None],
    ) -> None:
        self._index = index
        self._config = config
        self._ledger = fleet.ledger
        self._fleet = fleet
        self._runner = runner
        self._make_group = make_group
        self._configuration = configuration
        self._on_serving = on_serving
        self._on_restarting = on_restarting
        self._group: Group | None = None
        self._running: list[Generation] = []
        """Those that the ranks are at."""
        self._following: Call | None = None
        """What the ranks were told of already, and begin after that."""
        self._served = False
        self._losses: deque[float] = deque(maxlen=config.crash_loop_losses)
        self._reloading: Change | None = None
        self._reload_lost = False
        """Whether the first ranks for it have died."""

    def refuse_change(self, failure: RuntimeFailure) -> None:
        """Tell a writer whose change is tried here that it will never come into force."""
        change, self._reloading = self._reloading, None
        if change is not None:
            change.fail(failure)

    def leave(self, generation: Generation) -> None:
        """Ask the ranks to leave a generation at its next step boundary, if it runs on them."""
        following = self._following.batch if self._following else ()
        if self._group is not None and generation in (*self._running, *following):
            self._group.cancel(generation.number, generation.batch_index)

    async def run(self) -> None:
        """Serve until drained, with fresh ranks after each loss and each reload.

        Raises:
            ConfigError: the ranks cannot serve this model with these settings.
            RanksLost: the first ranks of all were lost before they served, or those of each group
                again and again.
        """
        if self._config.groups > 1:
            structlog.contextvars.bind_contextvars(group=self._index)
        if self._index > 0:
            await self._fleet.first_served.wait()
        while True:
            wanted = self._reloading.wanted if self._reloading else self._configuration()
            self._group = group = self._make_group(self._index, self._fleet.new_epoch(), wanted)
            try:
                await self._serve(group, wanted)
                await group.stop()
            except _Reload:
                self._on_restarting(self._index, RestartCause.RELOAD)
                await group.make_way()
            except GroupLost as lost:
                await self._lose(group, lost)
            except CannotLoad as cannot:
                self._cannot_load(cannot)
            else:
                return
            finally:
                self._fleet.leaves(self._index)
                self._runner.free_place()
                self._drop_following()
                await group.kill()
            if self._index in self._fleet.resting and not await self._rest():
                return

    async def _serve(self, group: Group, loaded: Configuration) -> None:
        """Start the ranks, then run what waits; returns when all have drained."""
        began = time.monotonic()
        if not self._fleet.serving:
            self._ledger.estimates.serving_at = began + self._fleet.start_seconds
        facts = await group.start()
        held = HeldAdapters(self._fleet.adapters, group, self._fleet.new_number)
        # Those that a reload cannot take along make it fail; the first ranks must hold all of them.
        required = self._reloading is not None or not self._served
        await held.restore(required=required)
        self._fleet.start_seconds = time.monotonic() - began
        self._served = True
        log.info("serving", epoch=group.epoch, seconds=round(self._fleet.start_seconds, 1))
        if facts.batch_fault:
            log.warning("served without batches", cause=facts.batch_fault)
        reloaded, self._reloading = self._reloading, None
        if reloaded is not None:
            self._ledger.estimates.forget()
            reloaded.succeed()
        self._check_configuration(loaded)
        self._ledger.estimates.serves(facts.separate_cfg)
        self._fleet.serves(self._index)
        self._on_serving(facts)
        ranks = _Ranks(group, facts, held, loaded)
        while (generation := await self._next(ranks)) is not None:
            call = self._begin(ranks, generation)
            while call is not None:
                await self._run(ranks, call)
                call, self._following = self._following, None

    async def _next(self, ranks: _Ranks) -> Generation | None:
        """Wait for the next generation, doing what changes meanwhile; None once all have drained.

        Of several groups that wait, the one that has waited longest is woken first.
        """
        group, held = ranks.group, ranks.held
        while True:
            if group.explanation:
                raise GroupLost(group.cause, group.explanation)
            self._check_configuration(ranks.loaded)
            change = self._fleet.offer(self._index)
            if change is not None:
                await self._apply(group, held, change)
                continue
            if not (held.complete or isinstance(self._fleet.change, AdapterChange)):
                await held.restore(required=False)
                continue
            if len(self._ledger) and not self._runner.placed:
                # Not between taking one and beginning it: what is in force may change meanwhile.
                await self._runner.place()
                continue
            patience = self._patience(ranks.facts)
            if patience > 0:
                await self._look_again(patience)
                continue
            generation = self._ledger.take()
            if generation is not None or self._fleet.finished:
                return generation
            await self._look_again(None)

    async def _send_ahead(self, ranks: _Ranks) -> None:
        """Tell the ranks what comes next before they are free, unless `_next` has more to do first.

        Otherwise they would wait between two generations until this process has heard of the end
        from all of them, taken the next and sent it.
        """
        if self._following is not None or ranks.group.explanation or self._fleet.change is not None:
            return
        if needs_reload(ranks.loaded, self._configuration()) or not ranks.held.complete:
            return
        if not len(self._ledger) or self._patience(ranks.facts) > 0:
            return
        if await self._runner.place_at_once():
            generation = self._ledger.take()
            if generation is not None:
                self._following = self._begin(ranks, generation)

    def _begin(self, ranks: _Ranks, first: Generation) -> Call | None:
        """Send the ranks one that was taken, and those that share its call; None: none can run."""
        batch = self._batch(ranks.facts, first)
        call = self._runner.begin(ranks.group, batch, self._fleet.new_number())
        if call is None:
            self._release(batch)
        return call

    def _patience(self, facts: Facts) -> float:
        """Give for how many seconds the next generation may still wait for others like it."""
        following, size = self._ledger.next, self._config.max_batch_size
        if following is None or facts.batch_fault or self._config.max_batch_wait == 0:
            return 0.0
        if self._fleet.draining.is_set() or self._ledger.alike(size) >= size:
            return 0.0
        if not self._may_share(following):
            return 0.0
        return following.accepted_at + self._config.max_batch_wait - time.monotonic()

    async def _look_again(self, seconds: float | None) -> None:
        """Wait until there may be something to do, or for so long."""
        self._ledger.work.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ledger.work.wait()

    def _batch(self, facts: Facts, first: Generation) -> list[Generation]:
        """Give a generation that was taken with those that share its call."""
        if facts.batch_fault or not self._may_share(first):
            return [first]
        busy = {each.group for each in self._ledger.running if each is not first}
        others = self._fleet.serving - busy - {self._index}
        return self._ledger.take_alike(first, self._config.max_batch_size, 1 + len(others))

    def _may_share(self, generation: Generation) -> bool:
        # One that is about to be settled anew may be another afterwards.
        current = self._configuration().revision
        return (
            self._config.max_batch_size > 1
            and generation.revision == current
            and self._fleet.may_begin(generation)
            and batch_key(generation) is not None
        )

    def _check_configuration(self, loaded: Configuration) -> None:
        """Leave ranks that were loaded for what is no longer in force, or never came to be."""
        if needs_reload(loaded, self._configuration()):
            raise _Reload

    async def _run(self, ranks: _Ranks, call: Call) -> None:
        self._running = [*call.batch]
        ahead = partial(self._send_ahead, ranks)
        if await self._runner.run(ranks.group, ranks.facts, call, ahead):
            self._losses.clear()
        self._running = []
        self._release(call.batch)

    def _release(self, batch: Sequence[Generation]) -> None:
        """Count them as running no more."""
        for generation in batch:
            self._ledger.release(generation)
        if self._fleet.draining.is_set() or self._fleet.change is not None:
            # Others wait for the end of this one, to leave or to agree.
            self._fleet.wake()

    async def _apply(self, group: Group, held: HeldAdapters, change: Pending) -> None:
        """Have the ranks agree to a change or refuse it; `_Reload` where that takes new ones."""
        try:
            match change:
                case Change(reload=True):
                    self._fleet.take(change)
                    self._reloading, self._reload_lost = change, False
                    raise _Reload
                case Change():
                    await self._configure(group, change)
                case AdapterChange():
                    await held.carry_out(change)
        except RuntimeFailure as failure:
            self._fleet.refuse(change, failure)
        except GroupLost as lost:
            self._fleet.interrupt(change, lost.explanation)
            raise
        else:
            self._fleet.agree(self._index, change)

    async def _configure(self, group: Group, change: Change) -> None:
        """Have the ranks hold its cache settings; `ChangeRefused` if they cannot."""
        if change.wanted.cache == self._configuration().cache:
            return
        failures = await self._hold(group, change.wanted.cache)
        if failures:
            problems = {Problem(failure.field or "cache", failure.message) for failure in failures}
            raise ChangeRefused(tuple(problems))

    async def _hold(self, group: Group, cache: CacheSettings) -> list[Failed]:
        """Make all ranks hold cache settings; give what those said that could not."""
        mask = None if isinstance(cache.method, Disabled) else cache.method.steps_computation_mask
        steps = len(mask) if isinstance(mask, tuple) else _MASK_STEPS
        command = Configure(
            epoch=group.epoch,
            number=self._fleet.new_number(),
            cache=cache,
            num_inference_steps=steps,
        )
        group.begin(command)
        async with aclosing(group.reports(command.number)) as reports:
            return [report async for report in reports if isinstance(report, Failed)]

    async def _lose(self, group: Group, lost: GroupLost) -> None:
        """Report lost ranks, and begin again or end what ran on them.

        Raises:
            RanksLost: as `run`.
        """
        estimate = timedelta(seconds=self._fleet.start_seconds)
        failure = RanksLost(group.epoch, lost.explanation, estimate)
        self._on_restarting(self._index, lost.cause)
        await self._report(group)
        if self._reloading is not None:
            # What dies has refused nothing, so that it gets one more try; what is slow gets none.
            if lost.cause is RestartCause.DIED and not self._reload_lost:
                self._reload_lost = True
            else:
                self._give_reload_up(lost.explanation)
            return
        # The first to have been taken comes to stand before the others.
        for generation in reversed(self._following.batch if self._following else ()):
            self._take_back(generation, lost.explanation)
        while self._running:
            self._recover(self._running.pop(), failure)
        now = time.monotonic()
        self._losses.append(now)
        window = self._config.crash_loop_window
        in_a_row = len(self._losses) == self._losses.maxlen and now - self._losses[0] < window
        never_served = not self._fleet.first_served.is_set()
        if never_served or (in_a_row and not self._fleet.rests(self._index)):
            raise failure from lost

    def _recover(self, generation: Generation, unexplained: RanksLost) -> None:
        """Let it begin again before all others, or end it; it runs no more."""
        if generation.state.final:
            self._ledger.release(generation)
            return
        attempts = self._config.max_attempts
        failures = self._runner.failures
        world_size = self._config.world_size
        ending = recovery.verdict(generation, failures, world_size, attempts, unexplained)
        if ending is not None:
            self._ledger.release(generation)
            self._ledger.end(generation, ending)
            return
        self._ledger.begin_again(generation, self._fleet.coming_epoch, unexplained.explanation)

    def _take_back(self, generation: Generation, reason: str) -> None:
        """Let one begin again whose turn had not come: the ranks were not lost by it."""
        if generation.state.final:
            self._ledger.release(generation)
            return
        generation.spared += 1
        self._ledger.begin_again(generation, self._fleet.coming_epoch, reason)

    def _drop_following(self) -> None:
        """Give up what the ranks have not come to."""
        if self._following is not None:
            self._following.place.free()
            self._following = None

    async def _report(self, group: Group) -> None:
        report = await group.examine()
        if self._running:
            running = self._running[0]
            report = replace(report, request_id=running.request_id, last_step=running.steps_done)
        log.error("the ranks were lost", **asdict(report))
        if self._config.crash_folder:
            try:
                crash_report.keep(report, Path(self._config.crash_folder))
            except OSError as error:
                log.warning("the crash report could not be kept", error=str(error))

    def _cannot_load(self, cannot: CannotLoad) -> None:
        """Tell who asked for it; what served before may yet do so again, if others do meanwhile.

        Raises:
            ConfigError: no group is left, or this one has never served: the settings ask for more
                than there is.
        """
        if self._reloading is not None:
            self._give_reload_up(str(cannot))
        elif self._served and self._fleet.rests(self._index):
            log.error("the ranks cannot be loaded again", error=str(cannot))
        else:
            subject = "groups" if self._index > 0 else "model"
            raise ConfigError((Problem(subject, str(cannot)),)) from cannot

    def _give_reload_up(self, cause: str) -> None:
        """Tell the writer; the next ranks have the configuration that is in force."""
        self.refuse_change(ReloadFailed(cause))

    async def _rest(self) -> bool:
        """Wait until ranks that were lost too often are tried again; False if all drain first."""
        seconds = self._config.crash_loop_window
        log.error("the ranks rest before they are tried again", seconds=seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._fleet.draining.wait()
        except TimeoutError:
            self._fleet.returns(self._index)
            return True
        return False
