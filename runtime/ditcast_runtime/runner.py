"""Runs generations on a group: from the ledger's hands to delivery, or to how they ended."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import assert_never

import structlog

from ditcast_runtime.accepted import Generation
from ditcast_runtime.config import Configuration, EngineConfig, needs_reload
from ditcast_runtime.delivery import Delivery, Order, Place, RunRecord
from ditcast_runtime.errors import (
    GenerationCancelled,
    InvalidRequest,
    NanOutput,
    OutOfMemory,
    PipelineFailed,
    PipelineRefused,
    RuntimeFailure,
    UnsupportedRequest,
)
from ditcast_runtime.events import RequestWarning, Started, StepCompleted
from ditcast_runtime.generation import Parameters, State
from ditcast_runtime.group import Group, ReceivedOutput, RunReport
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.messages import (
    Companion,
    Denoising,
    Ended,
    Facts,
    Failed,
    FailureKind,
    Outcome,
    Picture,
    Preview,
    Run,
    Step,
)
from ditcast_runtime.preview_delivery import PreviewDelivery
from ditcast_runtime.receipts import make_receipt
from ditcast_runtime.settings import Problem

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Running:
    """One of a batch, and what the ranks reported about it."""

    generation: Generation
    run: RunRecord = field(default_factory=RunRecord)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the pipeline that the ranks were told of.

    Attributes:
        number: its command's.
        batch: all that were taken for it; those that could not begin any more have ended.
        step_limit: bounds each step, in seconds.
    """

    number: int
    batch: Sequence[Generation]
    running: Sequence[_Running]
    place: Place
    step_limit: float | None


class Runner:
    """Runs generations, one at a time or a batch in one call; `failures` are the newest run's.

    `place`, then `begin`, then `run`; the next call may begin before its turn to run.
    """

    def __init__(
        self,
        config: EngineConfig,
        ledger: Ledger,
        delivery: Delivery,
        previews: PreviewDelivery,
        configuration: Callable[[], Configuration],
        may_begin: Callable[[Generation], bool],
        succeeded: Callable[[Generation], None],
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._delivery = delivery
        self._previews = previews
        self._configuration = configuration
        self._may_begin = may_begin
        self._succeeded = succeeded
        self._failures: list[Failed] = []
        self.placed = False
        """Whether there is a place for the output of the next call."""

    @property
    def failures(self) -> list[Failed]:
        """What the ranks have reported as failed in the newest run."""
        return self._failures

    async def place(self) -> None:
        """Wait until one more output may be alive; the next call, or `free_place`, takes it."""
        await self._delivery.place()
        self.placed = True

    async def place_at_once(self) -> bool:
        """Give whether there is a place now, without waiting for one."""
        if not self.placed and not self._delivery.full:
            await self.place()
        return self.placed

    def free_place(self) -> None:
        """Give back a place that no call will take."""
        if self.placed:
            self.placed = False
            self._delivery.free()

    def begin(self, group: Group, batch: Sequence[Generation], number: int) -> Call | None:
        """Let them begin in one call, as soon as the ranks are free; None: none of them can."""
        started = [each for each in batch if self._start(group, each, number)]
        if not started:
            return None
        for index, generation in enumerate(started):
            generation.batch_size, generation.batch_index = len(started), index
        first, *others = started
        command = Run(
            epoch=group.epoch,
            number=number,
            request_id=first.request_id,
            parameters=first.parameters,
            pictures=_layout(first.parameters),
            previews=first.submission.previews,
            companions=tuple(map(_companion, others)),
        )
        pictures = first.submission.pictures
        group.begin(command, None if pictures is None else pictures.descriptor)
        self.placed = False
        median = self._ledger.estimates.step_median(first.parameters, len(started))
        running = [_Running(generation) for generation in started]
        place = Place(self._delivery.free, 0)
        return Call(number, batch, running, place, step_limit(self._config, median))

    async def run(
        self, group: Group, facts: Facts, call: Call, on_output: Callable[[], Awaitable[None]]
    ) -> bool:
        """See a call through until every rank is free again, and hand over its outputs.

        `facts` are what these ranks say of themselves. `on_output` is called when rank 0 has sent
        an output: it needs no more than the last vote then. Gives whether any came to a result.

        Raises:
            GroupLost: the ranks were lost with them.
        """
        self._failures = []
        orders: list[Order] = []
        try:
            reports = group.reports(call.number, call.step_limit)
            async with aclosing(reports):
                async for report in reports:
                    self._take(call.running, report)
                    if isinstance(report, ReceivedOutput):
                        await on_output()
            orders = self._finish(group, facts, call.running, call.place)
        finally:
            delivering = {id(order.run) for order in orders}
            for each in call.running:
                if id(each.run) not in delivering:
                    each.run.discard_output()
            if not orders:
                call.place.free()
        call.place.outputs = len(orders)
        for order in orders:
            self._delivery.begin(order)
        return bool(orders)

    def _start(self, group: Group, generation: Generation, number: int) -> bool:
        """Let it begin, under the configuration in force unless it begins again."""
        if generation.state.final:
            return False
        generation.number, generation.stage = number, "prepare"
        generation.group = group.index
        generation.state = State.RUNNING
        if generation.configuration is not None:
            return self._begin_again(generation)
        current = self._configuration()
        if not self._settle(generation, current.revision):
            return False
        generation.configuration = current
        generation.started_at = time.monotonic()
        generation.log.append(
            Started(
                parameters=generation.parameters,
                configuration_revision=generation.revision,
                world_size=self._config.world_size,
                epoch=group.epoch,
                batch_size=generation.batch_size,
            )
        )
        for warning in generation.warnings:
            generation.log.append(warning)
        return True

    def _settle(self, generation: Generation, revision: int) -> bool:
        """Settle it anew if it was settled under something else; end it if it can no longer run."""
        if generation.revision == revision and self._may_begin(generation):
            return True
        generation.revision = revision
        try:
            generation.parameters, generation.warnings = generation.submission.settle()
        except (InvalidRequest, UnsupportedRequest) as error:
            # It was sound when it was accepted: what changed is the configuration, or the adapters.
            self._ledger.end(generation, UnsupportedRequest(error.problems))
            return False
        return self._has_adapters(generation, "an adapter is about to be unloaded")

    def _begin_again(self, generation: Generation) -> bool:
        """Let it begin once more with what it began with, as far as there are ranks for it."""
        reason = "an adapter could not be loaded again when the ranks were lost"
        if not self._has_adapters(generation, reason):
            return False
        current = self._configuration()
        if generation.configuration and needs_reload(generation.configuration, current):
            generation.configuration, generation.revision = current, current.revision
            message = f"the ranks have been loaded for revision {current.revision} meanwhile"
            generation.log.append(RequestWarning(field="", message=message))
        return True

    def _has_adapters(self, generation: Generation, reason: str) -> bool:
        if self._may_begin(generation):
            return True
        self._ledger.end(generation, UnsupportedRequest((Problem("adapters", reason),)))
        return False

    def _take(self, running: Sequence[_Running], report: RunReport) -> None:
        """Note what a rank says of one of them, or of the call, which is about all of them."""
        match report:
            case Preview():
                concerned = running[report.index : report.index + 1]
            case ReceivedOutput():
                concerned = running[report.message.index : report.message.index + 1]
            case Failed():
                concerned = running
                self._failures.append(report)
            case _:
                concerned = running
        for each in concerned:
            self._ledger.observe(each.generation, report)
            self._note(each.generation, each.run, report)

    def _note(self, generation: Generation, run: RunRecord, report: RunReport) -> None:
        match report:
            case Denoising():
                generation.stage = "denoise"
                run.sigmas, run.prepare_seconds = report.sigmas, report.prepare_seconds
                run.encode_prompt_seconds = report.encode_prompt_seconds
                run.prompts = report.prompts
            case Step():
                if not generation.state.final:
                    _add_step(generation, report)
            case Preview():
                self._previews.take(generation, report)
            case ReceivedOutput():
                run.output = report
            case Failed():
                pass
            case Ended():
                run.ended.append(report)
            case _:
                assert_never(report)

    def _finish(
        self, group: Group, facts: Facts, running: Sequence[_Running], place: Place
    ) -> list[Order]:
        """All ranks are free: give what is to be delivered, and end what has no output."""
        outcome = running[0].run.ended[0].outcome
        if outcome is Outcome.CANCELLED:
            for each in running:
                done = each.generation.steps_done
                self._ledger.end(each.generation, GenerationCancelled(done))
            return []
        if outcome is not Outcome.DONE and len(running) > 1:
            self._part(group, [each.generation for each in running])
            return []
        if outcome is not Outcome.DONE:
            generation = running[0].generation
            self._ledger.end(generation, _failure(generation.request_id, self._failures))
            return []
        size = len(running)
        return [
            self._order(facts, each, each.run.output, size, place)
            for each in running
            if each.run.output is not None and not each.generation.state.final
        ]

    def _part(self, group: Group, batch: Sequence[Generation]) -> None:
        """Let each of a batch that failed begin again alone: then it shows whose fault it was."""
        first = self._failures[0]
        log.warning(
            "a batch failed: each of it runs again alone",
            request_ids=[generation.request_id for generation in batch],
            error_type=first.error_type,
            error=first.message,
            step=first.step,
        )
        # The first to have been taken comes to stand before the others.
        for generation in reversed(batch):
            if not generation.state.final:
                generation.spared += 1
                reason = f"the batch that it was in failed: {first.error_type}"
                self._ledger.begin_again(generation, group.epoch, reason)

    def _order(
        self, facts: Facts, each: _Running, output: ReceivedOutput, size: int, place: Place
    ) -> Order:
        generation, run = each.generation, each.run
        return Order(
            generation=generation,
            run=run,
            output=output,
            receipt=lambda digests: make_receipt(
                self._config, facts, generation, run.sigmas, digests, size
            ),
            succeeded=self._succeeded,
            failed=self._ledger.end,
            place=place,
        )


def _companion(generation: Generation) -> Companion:
    return Companion(
        request_id=generation.request_id,
        parameters=generation.parameters,
        previews=generation.submission.previews,
    )


def step_limit(config: EngineConfig, median: float | None) -> float | None:
    """Bound a step by the median of its kind; None while that is not known."""
    if median is None:
        return None
    return max(config.step_timeout_floor, config.step_timeout_factor * median)


def _layout(parameters: Parameters) -> tuple[Picture, ...]:
    return tuple(
        Picture(parameter=image.parameter, width=image.width, height=image.height, mode=image.mode)
        for image in parameters.images
    )


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
    if report.step == report.total_steps:
        generation.stage = "decode"


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
