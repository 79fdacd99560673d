"""The figures that Prometheus may fetch: every family with its labels, in one registry.

Labels take few values that are known beforehand: never an id, a prompt or a caller. Series that
alerts look at are there from the start, because one that appears with 1 has not increased.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from ditcast_runtime.causes import RestartCause
from ditcast_runtime.engine import Phase
from ditcast_runtime.events import CacheDecision
from ditcast_runtime.generation import OutputFormat, Priority

_STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STAGE_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_ENCODE_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)

_GROUPS = "0 to groups - 1"

PREVIEW = "preview"
"""What stands in the place of a format for previews."""


class Verdict(enum.StrEnum):
    """What the ranks decided at a boundary of a generation."""

    GO_ON = "go_on"
    CANCEL = "cancel"
    FAILED = "failed"


class PromptResult(enum.StrEnum):
    """What a pipeline's call for a text's embedding came to; each is a field of `PromptUse`."""

    ENCODED = "encoded"
    REUSED = "reused"


class Stage(enum.StrEnum):
    """Where the time of a generation goes; each is a field of `Timings`."""

    QUEUED = "queued"
    LOAD = "load"
    WARM_UP = "warm_up"
    PREPARE = "prepare"
    DENOISE = "denoise"
    DECODE = "decode"
    ENCODE = "encode"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One family as the reference shows it."""

    name: str
    kind: str
    help: str
    labels: tuple[tuple[str, str], ...]
    """Each name with what its values are."""


_Made = TypeVar("_Made", bound=MetricWrapperBase)

Labels = dict[str, Iterable[str] | str]
"""Each name with its values; a text says what they are where they are not known beforehand."""


class Families:
    """All of them; `metrics` fills them in."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.described: list[Family] = []
        ProcessCollector(registry=self.registry)
        self._declare_state()
        self._declare_generations()
        self._declare_ranks()
        self._declare_edge()

    def _declare_state(self) -> None:
        gauge = self._gauge
        self.build = gauge(
            "ditcast_build_info", "1, for its label.", version="that of the installed package"
        )
        self.model = gauge(
            "ditcast_model_info",
            "1, for its labels; of the loaded pipeline, once there is one.",
            model="as receipts name it",
            pipeline="its class",
            device="cpu or cuda",
            dtype="the transformer's",
        )
        self.phase = gauge(
            "ditcast_phase",
            "1 for the phase of the service, else 0; health follows it.",
            phase=Phase,
        )
        self.world_size = gauge("ditcast_world_size", "Ranks in each group.")
        self.group_serving = gauge(
            "ditcast_group_serving",
            "1 for each group of ranks that takes generations, else 0.",
            group=_GROUPS,
        )
        self.revision = gauge(
            "ditcast_configuration_revision", "Revision of the configuration in force."
        )
        self.queue_depth = gauge(
            "ditcast_queue_depth",
            "Generations that wait, those that begin again too.",
            priority=(priority.name.lower() for priority in Priority),
        )
        self.queue_capacity = gauge("ditcast_queue_capacity", "Generations that may wait.")
        self.running = gauge("ditcast_generations_running", "Generations that have ranks.")
        self.in_flight = gauge(
            "ditcast_in_flight_bytes",
            "Pixels, raw and encoded, in and out, of all generations accepted and not finished.",
        )
        self.in_flight_limit = gauge("ditcast_in_flight_limit_bytes", "How many of those may be.")
        self.readers = gauge("ditcast_readers", "Streams that follow a generation.")

    def _declare_generations(self) -> None:
        self.accepted = self._counter(
            "ditcast_generations_accepted_total",
            "Generations that were accepted.",
            priority=(priority.name.lower() for priority in Priority),
        )
        self.ended = self._counter(
            "ditcast_generations_ended_total",
            "Generations that have ended, by the status that their readers got.",
            code="OK or another of gRPC's codes",
            reason="as in ErrorInfo; empty for OK",
        )
        self.seconds = self._histogram(
            "ditcast_generation_seconds",
            "From acceptance to the end, of generations with a result.",
            _STAGE_SECONDS,
        )
        self.stage_seconds = self._histogram(
            "ditcast_generation_stage_seconds",
            "Of that, each stage; what passed while ranks loaded and warmed up is in no other.",
            _STAGE_SECONDS,
            stage=Stage,
        )
        self.batch_size = self._histogram(
            "ditcast_batch_size",
            "Calls of the pipeline, by how many generations shared each; without batching 1.",
            _BATCH_SIZES,
        )
        self.steps = self._counter(
            "ditcast_steps_total",
            "Denoising steps, by what the cache did for the main transformer; those of a batch "
            "once.",
            decision=CacheDecision,
        )
        self.prompts = self._counter(
            "ditcast_prompts_total",
            "Prompts and negative prompts of generations that began to denoise, by whether their "
            "embedding was kept.",
            result=PromptResult,
        )
        self.step_seconds = self._histogram(
            "ditcast_step_seconds", "Denoising steps.", _STEP_SECONDS, decision=CacheDecision
        )
        for code, reason in (
            ("OK", ""),
            ("INTERNAL", "NAN_OUTPUT"),
            ("INTERNAL", "PIPELINE_FAILED"),
            ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY"),
        ):
            self.ended.labels(code, reason)

    def _declare_ranks(self) -> None:
        self.restarts = self._counter(
            "ditcast_ranks_restarts_total",
            "Times that all ranks of a group were replaced, by what ended the old ones.",
            group=_GROUPS,
            cause=RestartCause,
        )
        self.votes = self._counter(
            "ditcast_votes_total",
            "Votes of the ranks about generations: prepared, each step, the end.",
            verdict=Verdict,
        )
        self.memory_peak = self._gauge(
            "ditcast_rank_memory_peak_bytes",
            "Most that the newest generation took on the device; on cpu, that the process ever "
            "had resident.",
            group=_GROUPS,
            rank="0 to world size - 1",
        )
        self.memory_free = self._gauge(
            "ditcast_rank_memory_free_bytes",
            "Free on the device, on cpu available on the host, after the newest generation.",
            group=_GROUPS,
            rank="0 to world size - 1",
        )

    def _declare_edge(self) -> None:
        formats = (*OutputFormat, PREVIEW)
        self.encodes = self._counter(
            "ditcast_encodes_total", "Outputs and previews that were encoded.", format=formats
        )
        self.encode_failures = self._counter(
            "ditcast_encode_failures_total", "Those that could not be.", format=formats
        )
        self.encode_seconds = self._histogram(
            "ditcast_encode_seconds", "Encoding of one.", _ENCODE_SECONDS, format=formats
        )
        self.output_bytes = self._counter(
            "ditcast_output_bytes_total", "Encoded outputs passed to readers, counted as they end."
        )
        self.first_event_seconds = self._histogram(
            "ditcast_first_event_seconds",
            "From the arrival of a Generate to its first event.",
            _ENCODE_SECONDS,
        )
        self.rpcs = self._counter(
            "ditcast_rpcs_total",
            "RPCs of the contract that have ended.",
            method="as the contract names it",
            code="OK or another of gRPC's codes",
        )

    def _gauge(self, name: str, text: str, **labels: Iterable[str] | str) -> Gauge:
        made = Gauge(name, text, tuple(labels), registry=self.registry)
        return self._declared("gauge", made, name, text, labels)

    def _counter(self, name: str, text: str, **labels: Iterable[str] | str) -> Counter:
        made = Counter(name, text, tuple(labels), registry=self.registry)
        return self._declared("counter", made, name, text, labels)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], **labels: Iterable[str] | str
    ) -> Histogram:
        made = Histogram(name, text, tuple(labels), registry=self.registry, buckets=buckets)
        return self._declared("histogram", made, name, text, labels)

    def _declared(self, kind: str, made: _Made, name: str, text: str, labels: Labels) -> _Made:
        """Note it down, and make the series of those with one label of known values."""
        shown = []
        for label, values in labels.items():
            if isinstance(values, str):
                shown.append((label, values))
                continue
            known = tuple(map(str, values))
            shown.append((label, ", ".join(f"`{value}`" for value in known)))
            if len(labels) == 1:
                for value in known:
                    made.labels(value)
        self.described.append(Family(name=name, kind=kind, help=text, labels=tuple(shown)))
        return made
