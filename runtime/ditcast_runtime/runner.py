"""Runs one generation on a group: from the ledger's hands to delivery, or to how it ended."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import assert_never

import structlog

from ditcast_runtime.accepted import Generation
from ditcast_runtime.config import Configuration, EngineConfig
from ditcast_runtime.delivery import Delivery, Order, RunRecord
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
from ditcast_runtime.events import Started, StepCompleted
from ditcast_runtime.generation import AdapterUse, OutputDigest, Parameters, Receipt, State
from ditcast_runtime.group import Group, ReceivedOutput, RunReport
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.messages import (
    Denoising,
    Ended,
    Failed,
    FailureKind,
    Outcome,
    Picture,
    Preview,
    Run,
    Step,
)
from ditcast_runtime.preview_delivery import PreviewDelivery
from ditcast_runtime.settings import Problem

log = structlog.get_logger()

MakeReceipt = Callable[[Generation, tuple[float, ...], tuple[OutputDigest, ...]], Receipt]


class Runner:
    """Runs generations, one at a time; `failures` are those of the newest run."""

    def __init__(
        self,
        config: EngineConfig,
        ledger: Ledger,
        delivery: Delivery,
        previews: PreviewDelivery,
        configuration: Callable[[], Configuration],
        make_receipt: MakeReceipt,
        hold_adapters: Callable[[tuple[AdapterUse, ...]], bool],
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._delivery = delivery
        self._previews = previews
        self._configuration = configuration
        self._make_receipt = make_receipt
        self._hold_adapters = hold_adapters
        self._run = RunRecord()

    @property
    def failures(self) -> list[Failed]:
        """What the ranks have reported as failed in the newest run."""
        return self._run.failures

    async def run(self, group: Group, generation: Generation, number: int) -> bool:
        """Run it until every rank is free again, and hand over its output.

        Gives whether it came to a result.

        Raises:
            GroupLost: the ranks were lost with it.
        """
        await self._delivery.place()
        self._run = run = RunRecord()
        delivering = False
        try:
            if self._start(group, generation, number):
                await self._execute(group, generation, run)
                delivering = self._finish(generation, run)
        finally:
            if not delivering:
                run.discard_output()
                self._delivery.free()
        return delivering

    def _start(self, group: Group, generation: Generation, number: int) -> bool:
        """Let it begin, under the configuration in force unless it begins again."""
        if generation.state.final:
            return False
        generation.number, generation.stage = number, "prepare"
        generation.state = State.RUNNING
        held = self._hold_adapters(generation.parameters.adapters)
        if generation.configuration is not None:
            if not held:
                reason = "an adapter could not be loaded again when the ranks were lost"
                self._ledger.end(generation, UnsupportedRequest((Problem("adapters", reason),)))
            return held
        generation.configuration = self._configuration()
        try:
            if generation.revision != generation.configuration.revision or not held:
                generation.revision = generation.configuration.revision
                generation.parameters, generation.warnings = generation.submission.settle()
        except (InvalidRequest, UnsupportedRequest) as error:
            # It was sound when it was accepted: what changed is the configuration, or the adapters.
            self._ledger.end(generation, UnsupportedRequest(error.problems))
            return False
        generation.started_at = time.monotonic()
        generation.log.append(
            Started(
                parameters=generation.parameters,
                configuration_revision=generation.revision,
                world_size=self._config.world_size,
                epoch=group.epoch,
            )
        )
        for warning in generation.warnings:
            generation.log.append(warning)
        return True

    async def _execute(self, group: Group, generation: Generation, run: RunRecord) -> None:
        command = Run(
            epoch=group.epoch,
            number=generation.number,
            request_id=generation.request_id,
            parameters=generation.parameters,
            pictures=_layout(generation.parameters),
            previews=generation.submission.previews,
        )
        pictures = generation.submission.pictures
        reports = group.run(
            command,
            self._step_limit(generation.parameters),
            None if pictures is None else pictures.descriptor,
        )
        async with aclosing(reports):
            async for report in reports:
                self._take(generation, run, report)

    def _take(self, generation: Generation, run: RunRecord, report: RunReport) -> None:
        self._ledger.observe(generation, report)
        match report:
            case Denoising():
                generation.stage = "denoise"
                run.sigmas, run.prepare_seconds = report.sigmas, report.prepare_seconds
                run.encode_prompt_seconds = report.encode_prompt_seconds
            case Step():
                _add_step(generation, report)
            case Preview():
                self._previews.take(generation, report)
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

    def _step_limit(self, parameters: Parameters) -> float | None:
        median = self._ledger.estimates.step_median(parameters)
        if median is None:
            return None
        return max(self._config.step_timeout_floor, self._config.step_timeout_factor * median)


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
