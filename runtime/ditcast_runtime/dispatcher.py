"""Keeps a group of ranks serving: runs the ledger's generations on it, replaces it when lost."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from datetime import timedelta
from typing import assert_never

import structlog

from ditcast_runtime.accepted import Generation
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.delivery import Delivery, Order, RunRecord
from ditcast_runtime.errors import (
    ConfigError,
    GenerationCancelled,
    NanOutput,
    OutOfMemory,
    PipelineFailed,
    PipelineRefused,
    RanksLost,
    RuntimeFailure,
)
from ditcast_runtime.events import Started, StepCompleted
from ditcast_runtime.generation import OutputDigest, Parameters, Receipt, State
from ditcast_runtime.group import CannotLoad, Group, GroupLost, ReceivedOutput, RunReport
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.messages import (
    Denoising,
    Ended,
    Facts,
    Failed,
    FailureKind,
    Outcome,
    Run,
    Step,
)
from ditcast_runtime.settings import Problem

log = structlog.get_logger()

_UNKNOWN_SECONDS = 10.0
"""What a start is taken to last before any was measured."""

MakeGroup = Callable[[int], Group]
"""Makes the group of an epoch."""

MakeReceipt = Callable[[Generation, tuple[float, ...], tuple[OutputDigest, ...]], Receipt]


class Dispatcher:
    """Runs one generation after another; `run` returns once it has drained.

    `draining` set and `ledger.work` set make it return when nothing waits any more.
    """

    def __init__(
        self,
        config: EngineConfig,
        ledger: Ledger,
        delivery: Delivery,
        make_group: MakeGroup,
        make_receipt: MakeReceipt,
        on_serving: Callable[[Facts], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._delivery = delivery
        self._make_group = make_group
        self._make_receipt = make_receipt
        self._on_serving = on_serving
        self._on_lost = on_lost
        self._group: Group | None = None
        self._number = 0
        self._epoch = 0
        self._served = False
        self._losses: deque[float] = deque(maxlen=config.crash_loop_losses)
        self._start_seconds = _UNKNOWN_SECONDS
        self.draining = False

    @property
    def start_estimate(self) -> timedelta:
        """How long a start is likely to take: what the last one took."""
        return timedelta(seconds=self._start_seconds)

    def leave(self, generation: Generation) -> None:
        """Ask the ranks to leave the generation that runs, at its next step boundary."""
        if self._group is not None:
            self._group.cancel(generation.number)

    async def run(self) -> None:
        """Serve until drained, with a fresh group after each loss.

        Raises:
            ConfigError: the ranks cannot serve this model with these settings.
            RanksLost: the first group was lost before it served, or one after the other.
        """
        while True:
            self._epoch += 1
            self._group = self._make_group(self._epoch)
            try:
                await self._serve(self._group)
                await self._group.stop()
            except GroupLost as lost:
                self._lose(lost)
            except CannotLoad as cannot:
                raise ConfigError((Problem("model", str(cannot)),)) from cannot
            else:
                return
            finally:
                await self._group.kill()

    async def _serve(self, group: Group) -> None:
        """Start the group, then run what waits; returns when it has drained."""
        began = time.monotonic()
        facts = await group.start()
        self._start_seconds = time.monotonic() - began
        self._served = True
        log.info("serving", epoch=group.epoch, seconds=round(self._start_seconds, 1))
        self._on_serving(facts)
        while (generation := await self._next(group)) is not None:
            await self._run(group, generation)

    async def _next(self, group: Group) -> Generation | None:
        """Wait for the next generation; None once draining and nothing waits."""
        while True:
            if group.explanation:
                raise GroupLost(group.explanation)
            generation = self._ledger.take()
            if generation is not None or self.draining:
                return generation
            self._ledger.work.clear()
            await self._ledger.work.wait()

    async def _run(self, group: Group, generation: Generation) -> None:
        """Run one generation until every rank is free again, and hand over its output."""
        await self._delivery.place()
        run = RunRecord()
        delivering = False
        try:
            if not generation.state.final:
                await self._execute(group, generation, run)
                delivering = self._finish(generation, run)
        finally:
            if not delivering:
                run.discard_output()
                self._delivery.free()
        self._ledger.running = None

    async def _execute(self, group: Group, generation: Generation, run: RunRecord) -> None:
        self._number += 1
        generation.number = self._number
        generation.state = State.RUNNING
        generation.started_at = time.monotonic()
        generation.log.append(
            Started(
                parameters=generation.parameters,
                configuration_revision=1,
                world_size=self._config.world_size,
                epoch=group.epoch,
            )
        )
        for warning in generation.warnings:
            generation.log.append(warning)
        command = Run(
            epoch=group.epoch,
            number=generation.number,
            request_id=generation.request_id,
            parameters=generation.parameters,
        )
        reports = group.run(command, self._step_limit(generation.parameters))
        async with aclosing(reports):
            async for report in reports:
                self._take(generation, run, report)

    def _take(self, generation: Generation, run: RunRecord, report: RunReport) -> None:
        match report:
            case Denoising():
                run.sigmas, run.prepare_seconds = report.sigmas, report.prepare_seconds
            case Step():
                kind = _step_kind(generation.parameters)
                self._ledger.durations.record(kind, report.seconds)
                _add_step(generation, report)
            case ReceivedOutput():
                run.output = report
            case Failed():
                run.failures.append(report)
            case Ended():
                run.ended.append(report)
            case _:
                assert_never(report)

    def _finish(self, generation: Generation, run: RunRecord) -> bool:
        """All ranks are free: begin to deliver the output, or say why there is none.

        Gives whether the output is on its way.
        """
        outcome = run.ended[0].outcome
        if outcome is Outcome.CANCELLED:
            self._ledger.end(generation, GenerationCancelled(generation.steps_done))
            return False
        if outcome is not Outcome.DONE:
            self._ledger.end(generation, _failure(generation.request_id, run.failures))
            return False
        self._losses.clear()
        self._ledger.measured(generation)
        if generation.state.final or run.output is None:
            return False
        self._delivery.begin(
            Order(
                generation=generation,
                run=run,
                output=run.output,
                receipt=lambda digests: self._make_receipt(generation, run.sigmas, digests),
                succeeded=self._ledger.succeed,
                failed=self._ledger.end,
            )
        )
        return True

    def _lose(self, lost: GroupLost) -> None:
        """End what ran on a lost group; RanksLost where groups are lost again and again."""
        log.error("the ranks were lost", epoch=self._epoch, explanation=lost.explanation)
        failure = RanksLost(self._epoch, lost.explanation, self.start_estimate)
        if self._ledger.running is not None:
            self._ledger.end(self._ledger.running, failure)
            self._ledger.running = None
        now = time.monotonic()
        self._losses.append(now)
        in_a_row = len(self._losses) == self._losses.maxlen
        if not self._served or (
            in_a_row and now - self._losses[0] < self._config.crash_loop_window
        ):
            raise failure from lost
        self._on_lost()

    def _step_limit(self, parameters: Parameters) -> float | None:
        median = self._ledger.durations.median(_step_kind(parameters))
        if median is None:
            return None
        return max(self._config.step_timeout_floor, self._config.step_timeout_factor * median)


def _add_step(generation: Generation, report: Step) -> None:
    done = sum(step.step_duration for step in generation.steps) + report.seconds
    event = StepCompleted(
        step=report.step,
        total_steps=report.total_steps,
        timestep=report.timestep,
        sigma=report.sigma,
        step_duration=report.seconds,
        estimated_remaining=done / report.step * (report.total_steps - report.step),
        transformers=report.transformers,
    )
    generation.steps.append(event)
    generation.log.append(event)


def _step_kind(parameters: Parameters) -> tuple[object, ...]:
    """Tell what makes steps take equally long."""
    return (parameters.width, parameters.height, parameters.num_images, parameters.cache)


def _failure(request_id: str, failures: list[Failed]) -> RuntimeFailure:
    """Turn what the ranks reported into what ended the generation; the types decide."""
    kinds = {failure.kind for failure in failures}
    first = failures[0]
    if FailureKind.OUT_OF_MEMORY in kinds:
        ranks = (f.rank for f in failures if f.kind is FailureKind.OUT_OF_MEMORY)
        return OutOfMemory(tuple(sorted(ranks)))
    if FailureKind.REFUSED in kinds:
        return PipelineRefused(first.field, first.message)
    error_id = uuid.uuid4().hex
    log.error(
        "generation failed on the ranks",
        request_id=request_id,
        error_id=error_id,
        ranks=[failure.rank for failure in failures],
        error_type=first.error_type,
        error=first.message,
        step=first.step,
    )
    if FailureKind.NAN_OUTPUT in kinds:
        return NanOutput(error_id)
    return PipelineFailed(error_id, first.error_type, first.step)
