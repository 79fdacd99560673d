"""What the commands say in words: errors, events as lines or JSON, and the summary at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from ditcast.v1.generation_pb2 import (
    CacheDecision,
    GenerationEvent,
    GenerationState,
    Preview,
    Queued,
    ResolvedParameters,
    Restarted,
    StepCompleted,
    Warning,  # noqa: A004  # the contract's word
)
from ditcast_client import errors, exits, figures
from ditcast_client.result import Result
from ditcast_client.units import bytes_text, duration_text

Row = tuple[str, str]
"""A label and what it says."""

_KINDS_OF_END: Final = {
    exits.FAILED: "failed",
    exits.REFUSED: "refused",
    exits.UNAVAILABLE: "unavailable",
    exits.TIMED_OUT: "time limit",
    exits.CANCELLED: "cancelled",
}
_BINARY_KINDS: Final = ("output_chunk", "preview")


def error_text(error: errors.DitcastError) -> str:
    """Say what went wrong: in a line, or in one for each thing that was refused."""
    kind = _KINDS_OF_END[exits.exit_code(error)]
    text = f"{kind}: {error.message or error.code.name}"
    match error:
        case errors.Cancelled(steps_done=int(steps)):
            text = f"cancelled after {_steps(steps)}"
        case errors.DeadlineExceeded(steps_done=int(steps)):
            text = f"time limit: it ran out after {_steps(steps)}"
        case errors.Unavailable(retry_delay=timedelta() as delay):
            text += f" (try again in {delay.total_seconds():g} s)"
        case errors.ResourceExhausted(retry_delay=timedelta() as delay):
            text += f" (try again in {delay.total_seconds():g} s)"
    # The server's message runs the violations together; a line for each reads better.
    return "\n  ".join([f"{kind}:", *map(str, error.violations)]) if error.violations else text


def event_json(event: GenerationEvent) -> str:
    """Give an event as a line of protobuf JSON, with the number of bytes in place of bytes."""
    kind = event.WhichOneof("kind")
    if kind not in _BINARY_KINDS:
        return json.dumps(_to_dict(event))
    shown = GenerationEvent()
    shown.CopyFrom(event)
    body = shown.output_chunk if kind == "output_chunk" else shown.preview
    size = len(body.data)
    body.ClearField("data")
    fields = _to_dict(shown)
    content = fields["outputChunk" if kind == "output_chunk" else "preview"]
    del content["data"]
    content["dataBytes"] = size
    return json.dumps(fields)


def event_line(event: GenerationEvent) -> str | None:
    """Give an event as a line of text; None for those that say nothing to a reader."""
    line = None
    match event.WhichOneof("kind"):
        case "queued":
            line = queued_text(event.queued)
        case "started":
            line = f"started: {parameters_text(event.started.parameters)}"
        case "step_completed":
            line = _step_line(event.step_completed)
        case "warning":
            line = f"warning: {warning_text(event.warning)}"
        case "preview":
            line = preview_text(event.preview) if event.preview.data else None
        case "restarted":
            line = f"begun again: {restarted_text(event.restarted)}"
        case "heartbeat":
            line = f"still {state_word(event.heartbeat.state)}"
    return line


def queued_text(queued: Queued) -> str:
    """Say how many wait before a generation, and for how long it is likely to wait."""
    place = f"{queued.position} before this one" if queued.position else "next"
    if not queued.position or not queued.HasField("estimated_wait"):
        return f"queued: {place}"
    return f"queued: {place}, about {duration_text(queued.estimated_wait)}"


def parameters_text(parameters: ResolvedParameters) -> str:
    """Say what is about to be made."""
    size = f"{parameters.width}x{parameters.height}"
    return f"{size}, {parameters.num_inference_steps} steps, seed {parameters.seed}"


def warning_text(warning: Warning) -> str:
    """Say what a warning is about."""
    return f"{warning.field}: {warning.message}" if warning.field else warning.message


def preview_text(preview: Preview) -> str:
    """Say what a preview is of."""
    size = f"{preview.width}x{preview.height}, {bytes_text(len(preview.data))}"
    return f"preview after step {preview.step} of output {preview.output_index}: {size}"


def restarted_text(restarted: Restarted) -> str:
    """Say why a generation begins again."""
    # One that the client began anew has no end that it knows of.
    most = f" of {restarted.max_attempts}" if restarted.max_attempts else ""
    return f"{restarted.reason} (run {restarted.attempt}{most})"


def state_word(state: GenerationState.ValueType) -> str:
    """Give the word for a state."""
    return GenerationState.Name(state).removeprefix("GENERATION_STATE_").lower()


def decision_word(decision: CacheDecision.ValueType) -> str:
    """Give the word for what the cache did."""
    return CacheDecision.Name(decision).removeprefix("CACHE_DECISION_").lower()


def summary(result: Result, paths: Sequence[Path]) -> Iterator[Row]:
    """Say what a generation gave; without outputs, as what the request was understood."""
    if not result.outputs:
        yield from rows_of(result.started.parameters)
        return
    for path, output in zip(paths, result.outputs, strict=True):
        yield "output", f"{path} ({output.media_type}, {bytes_text(len(output.data))})"
    yield "seed", str(result.seed)
    yield from figures.rows(result)


def rows_of(message: Message) -> Iterator[Row]:
    """Give each value of a message with its path."""
    yield from _flatten("", MessageToDict(message, preserving_proto_field_name=True))


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _flatten(path: str, value: object) -> Iterator[Row]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{path}.{key}" if path else key, inner)
        if not value and path:
            yield path, "{}"
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _to_dict(event: GenerationEvent) -> dict[str, dict[str, object]]:
    return MessageToDict(event, always_print_fields_with_no_presence=True)


def _step_line(step: StepCompleted) -> str:
    line = f"step {step.step}/{step.total_steps} {decision_word(step.cache_decision)}"
    if step.HasField("cfg_cache_decision"):
        line += f" (without the prompt: {decision_word(step.cfg_cache_decision)})"
    line += f", {duration_text(step.step_duration)}"
    if step.HasField("estimated_remaining") and step.step < step.total_steps:
        line += f", {duration_text(step.estimated_remaining)} left"
    return line
