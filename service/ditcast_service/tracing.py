"""Spans of RPCs and generations, sent by OTLP; imported only where an endpoint is named.

A generation's span is a child of the RPC that asked for it, and lives on without it. What the ranks
did is laid out from the stage times that they report: no rank needs a clock that agrees with ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib.metadata import version

import grpc
from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from ditcast_runtime.accepted import Generation
from ditcast_runtime.causes import RestartCause
from ditcast_runtime.errors import RuntimeFailure
from ditcast_runtime.events import CacheDecision
from ditcast_runtime.group import RunReport
from ditcast_runtime.messages import Denoising, Ended, Step
from ditcast_service.endings import ending
from ditcast_service.gate import Metadata
from ditcast_service.health import SERVICE
from ditcast_service.interceptors import Record, RpcEnded

_UNNAMED = "unknown_service"
"""What the SDK calls a service that nobody named."""


@dataclass(slots=True, eq=False)
class _Trace:
    """A generation's span and what of its present run is known; times are nanoseconds."""

    span: Span
    context: Context
    queued_at: int
    denoising_at: int = 0
    """0: the ranks prepare it, or have not begun."""
    last_report_at: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    """So many of each of the cache's decisions."""


class Tracing:
    """An observer of the engine and of RPCs, as `Metrics` is."""

    def __init__(self) -> None:
        resource = Resource.create({"service.version": version("ditcast")})
        if str(resource.attributes["service.name"]).startswith(_UNNAMED):
            resource = resource.merge(Resource({"service.name": "ditcast"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("ditcast", version("ditcast"))
        self._traces: dict[Generation, _Trace] = {}
        self._on_ranks: dict[Generation, _Trace] = {}
        """Kept beyond the end of a generation: the ranks leave it later."""

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()

    def rpc_began(self, method: str, metadata: Metadata) -> RpcEnded:
        """Begin a span under the caller's, in whose context the RPC then runs."""
        given = {key: value for key, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{SERVICE}/{method}",
            propagate.extract(given),
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": method},
        )
        # Never detached: gRPC gives each RPC a context of its own.
        contexts.attach(trace.set_span_in_context(span))

        def ended(code: str, record: Record) -> None:
            if record.request_id is not None:
                span.set_attribute("ditcast.request_id", record.request_id)
            span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
            _end(span, code)

        return ended

    def accepted(self, generation: Generation) -> None:
        """Begin its span, under that of the RPC that asked for it."""
        now, parameters = time.time_ns(), generation.parameters
        attributes: dict[str, AttributeValue] = {
            "ditcast.request_id": generation.request_id,
            "ditcast.priority": generation.submission.priority.name.lower(),
            "ditcast.width": parameters.width,
            "ditcast.height": parameters.height,
            "ditcast.num_inference_steps": parameters.num_inference_steps,
            "ditcast.num_images": parameters.num_images,
        }
        span = self._tracer.start_span("generation", attributes=attributes, start_time=now)
        self._traces[generation] = _Trace(span, trace.set_span_in_context(span), now)

    def taken(self, generation: Generation) -> None:
        """It waits no more."""
        traced = self._traces[generation]
        # What has ended is left by now, or as good as left.
        for left in self._on_ranks.keys() - self._traces.keys():
            del self._on_ranks[left]
        self._on_ranks[generation] = traced
        self._child(traced, "queued", traced.queued_at, time.time_ns())

    def reported(self, generation: Generation, report: RunReport) -> None:
        """Lay out what a rank says that it has done."""
        traced = self._on_ranks.get(generation)
        if traced is None:
            return
        now = time.time_ns()
        traced.last_report_at = now
        match report:
            case Denoising():
                traced.denoising_at, traced.steps = now, {}
                begin = now - _nanoseconds(report.prepare_seconds)
                self._child(traced, "prepare", begin, now, {"ditcast.rank": 0})
            case Step():
                made = report.transformers
                decision = made[0].decision if made else CacheDecision.COMPUTED
                traced.steps[decision] = traced.steps.get(decision, 0) + 1
            case Ended() if traced.denoising_at:
                self._lay_out(traced, report, generation.attempt)

    def begins_again(self, generation: Generation) -> None:
        """Close what its lost ranks had begun; `restarted` stands in its span."""
        traced = self._traces[generation]
        if traced.denoising_at:
            lost: dict[str, AttributeValue] = {
                "ditcast.outcome": "lost",
                "ditcast.attempt": generation.attempt - 1,
            }
            begin, end = traced.denoising_at, traced.last_report_at
            self._child(traced, "denoise", begin, end, lost | _counts(traced))
        traced.denoising_at, traced.queued_at = 0, time.time_ns()
        traced.span.add_event("restarted", {"ditcast.attempt": generation.attempt})

    def ended(self, generation: Generation, failure: RuntimeFailure | None) -> None:
        """End its span as its readers are told of its end."""
        traced, now = self._traces.pop(generation), time.time_ns()
        if generation.completed is not None:
            begin = now - _nanoseconds(generation.completed.timings.encode)
            self._child(traced, "encode", begin, now)
        code, reason = ending(failure)
        traced.span.set_attribute("ditcast.configuration_revision", generation.revision)
        if reason:
            traced.span.set_attribute("ditcast.reason", reason)
        _end(traced.span, code, now)

    def ranks_restart(self, group: int, cause: RestartCause) -> None:
        """It concerns no trace but that of the generation that begins again."""

    def _lay_out(self, traced: _Trace, report: Ended, attempt: int) -> None:
        attributes: dict[str, AttributeValue] = {
            "ditcast.rank": report.rank,
            "ditcast.attempt": attempt,
            "ditcast.outcome": report.outcome,
        }
        denoised = traced.denoising_at + _nanoseconds(report.denoise_seconds)
        self._child(traced, "denoise", traced.denoising_at, denoised, attributes | _counts(traced))
        if report.decode_seconds:
            decoded = denoised + _nanoseconds(report.decode_seconds)
            memory = report.memory
            attributes |= {"ditcast.peak_bytes": memory.peak_bytes}
            self._child(traced, "decode", denoised, decoded, attributes)

    def _child(
        self,
        traced: _Trace,
        name: str,
        begin: int,
        end: int,
        attributes: dict[str, AttributeValue] | None = None,
    ) -> None:
        span = self._tracer.start_span(
            name, traced.context, attributes=attributes, start_time=begin
        )
        span.end(end)


def _counts(traced: _Trace) -> dict[str, AttributeValue]:
    return {f"ditcast.{decision}_steps": count for decision, count in traced.steps.items()}


def _end(span: Span, code: str, at: int | None = None) -> None:
    """End a span; whoever looks for what went wrong finds cancelled ones too, by their code."""
    if code == grpc.StatusCode.OK.name:
        span.set_status(StatusCode.OK)
    else:
        span.set_status(StatusCode.ERROR, code)
    span.end(at)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
