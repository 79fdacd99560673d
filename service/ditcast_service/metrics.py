"""Fills in the figures: told by the engine, by the edge of each RPC, and around each encoding.

What is only a state (the phase, the bytes in flight) is looked at when it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Protocol

from ditcast.v1 import diffusion_service_pb2
from ditcast_runtime.accepted import Generation
from ditcast_runtime.causes import RestartCause
from ditcast_runtime.config import Configuration
from ditcast_runtime.delivery import Encode
from ditcast_runtime.engine import Phase
from ditcast_runtime.errors import RuntimeFailure
from ditcast_runtime.events import CacheDecision, RankMemory
from ditcast_runtime.generation import EncodedOutput, OutputOptions, RawOutput
from ditcast_runtime.group import RunReport
from ditcast_runtime.ledger import Vitals
from ditcast_runtime.messages import Denoising, Ended, Facts, Outcome, Step
from ditcast_runtime.preview_delivery import EncodePreview
from ditcast_service.config import ServerConfig
from ditcast_service.endings import ending
from ditcast_service.gate import Metadata
from ditcast_service.interceptors import Record, RpcEnded
from ditcast_service.metric_families import PREVIEW, Families, PromptResult, Stage, Verdict

_LAST_VERDICTS = {
    Outcome.DONE: Verdict.GO_ON,
    Outcome.CANCELLED: Verdict.CANCEL,
    Outcome.VETOED: Verdict.FAILED,
    Outcome.FAILED: Verdict.FAILED,
}


class Engine(Protocol):
    """What is looked at when the figures are asked for."""

    phase: Phase

    @property
    def configuration(self) -> Configuration:
        """What is in force."""
        ...

    @property
    def vitals(self) -> Vitals:
        """How much there is of everything now."""
        ...

    @property
    def serving_groups(self) -> Collection[int]:
        """The indices of the groups of ranks that take generations."""
        ...

    @property
    def facts(self) -> Facts:
        """What is known of the loaded pipeline; NotServing before the first SERVING."""
        ...


class Metrics:
    """An observer of the engine and of RPCs; see `ditcast_runtime.observer` for the calls."""

    def __init__(self, config: ServerConfig) -> None:
        self.families = made = Families()
        self._model_id = config.model_id
        self._waiting: set[Generation] = set()
        made.build.labels(version("ditcast")).set(1)
        made.world_size.set(config.world_size)
        self._groups = range(config.groups)
        for group in self._groups:
            for cause in RestartCause:
                made.restarts.labels(group, cause)
        made.queue_capacity.set(config.queue_capacity)
        made.in_flight_limit.set(config.max_bytes_in_flight)
        service = diffusion_service_pb2.DESCRIPTOR.services_by_name["DiffusionService"]
        for method in service.methods:
            made.rpcs.labels(method.name, "OK")

    def look(self, engine: Engine) -> None:
        """Take in what is a state; on the event loop."""
        made, vitals = self.families, engine.vitals
        for phase in Phase:
            made.phase.labels(phase).set(phase is engine.phase)
        made.revision.set(engine.configuration.revision)
        for group in self._groups:
            made.group_serving.labels(group).set(group in engine.serving_groups)
        made.running.set(vitals.running)
        made.in_flight.set(vitals.bytes_in_flight)
        made.readers.set(vitals.readers)
        if engine.phase is Phase.SERVING:
            facts = engine.facts
            # Ranks that were loaded anew may have other numbers: one series, not one for each.
            made.model.clear()
            made.model.labels(self._model_id, facts.pipeline_class, facts.device, facts.dtype).set(
                1
            )

    def accepted(self, generation: Generation) -> None:
        """Count it, and that it waits."""
        self.families.accepted.labels(_priority(generation)).inc()
        self._wait(generation)

    def taken(self, generation: Generation) -> None:
        """It waits no more."""
        self._wait_no_more(generation)

    def reported(self, generation: Generation, report: RunReport) -> None:
        """Count steps and votes; each report stands for a boundary that all ranks passed."""
        made = self.families
        if generation.batch_index > 0:
            return  # The ranks made it once for all of the batch, and the first stands for them.
        match report:
            case Denoising():
                made.batch_size.observe(generation.batch_size)
                made.votes.labels(Verdict.GO_ON).inc()
                for result in PromptResult:
                    made.prompts.labels(result).inc(getattr(report.prompts, result))
            case Step():
                made.votes.labels(Verdict.GO_ON).inc()
                decision = _decision(report)
                made.steps.labels(decision).inc()
                made.step_seconds.labels(decision).observe(report.seconds)
            case Ended():
                self._remember(generation.group, report.memory)
                if report.rank == 0:
                    made.votes.labels(_LAST_VERDICTS[report.outcome]).inc()

    def begins_again(self, generation: Generation) -> None:
        """It waits once more."""
        self._wait(generation)

    def ended(self, generation: Generation, failure: RuntimeFailure | None) -> None:
        """Count how it ended, and what a result took."""
        made, completed = self.families, generation.completed
        self._wait_no_more(generation)
        made.ended.labels(*ending(failure)).inc()
        if failure is None and completed is not None:
            made.seconds.observe(completed.timings.total)
            for stage in Stage:
                made.stage_seconds.labels(stage).observe(getattr(completed.timings, stage))

    def ranks_restart(self, group: int, cause: RestartCause) -> None:
        """Count it."""
        self.families.restarts.labels(group, cause).inc()

    def rpc_began(self, method: str, metadata: Metadata) -> RpcEnded:  # noqa: ARG002
        """Give what is to be called at its end."""

        def ended(code: str, record: Record) -> None:
            self.families.rpcs.labels(method, code).inc()
            self.families.output_bytes.inc(record.output_bytes)
            if method == "Generate" and record.first_event_at is not None:
                seconds = record.first_event_at - record.began
                self.families.first_event_seconds.observe(seconds)

        return ended

    def timed(self, encode: Encode) -> Encode:
        """Time an encoder of outputs, in whatever thread it is called."""

        def encoded(data: memoryview, raw: RawOutput, options: OutputOptions) -> EncodedOutput:
            with self._encoding(options.format):
                return encode(data, raw, options)

        return encoded

    def timed_preview(self, encode: EncodePreview) -> EncodePreview:
        """Time an encoder of previews, as above."""

        def encoded(pixels: bytes, size: tuple[int, int], wanted: tuple[int, int]) -> bytes:
            with self._encoding(PREVIEW):
                return encode(pixels, size, wanted)

        return encoded

    @contextmanager
    def _encoding(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        except BaseException:
            self.families.encode_failures.labels(name).inc()
            raise
        self.families.encodes.labels(name).inc()
        self.families.encode_seconds.labels(name).observe(time.monotonic() - begin)

    def _remember(self, group: int, memory: RankMemory) -> None:
        self.families.memory_peak.labels(group, memory.rank).set(memory.peak_bytes)
        self.families.memory_free.labels(group, memory.rank).set(memory.free_bytes)

    def _wait(self, generation: Generation) -> None:
        self._waiting.add(generation)
        self.families.queue_depth.labels(_priority(generation)).inc()

    def _wait_no_more(self, generation: Generation) -> None:
        if generation in self._waiting:
            self._waiting.remove(generation)
            self.families.queue_depth.labels(_priority(generation)).dec()


def _decision(step: Step) -> CacheDecision:
    """Give the main transformer's; what has no transformer is computed."""
    return step.transformers[0].decision if step.transformers else CacheDecision.COMPUTED


def _priority(generation: Generation) -> str:
    return generation.submission.priority.name.lower()
