"""What is asked for, out of a GenerateRequest; and how a request is told from another.

Reading never stops at the first thing that cannot be: `validation` adds its own findings.
"""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf.message import Message

from ditcast.v1 import diffusion_service_pb2 as service_pb
from ditcast.v1 import generation_pb2 as pb
from ditcast_runtime.generation import (
    AdapterWeight,
    AskedOutput,
    InputImage,
    KeywordValue,
    OutputFormat,
    PreviewOptions,
    Priority,
    Request,
)
from ditcast_runtime.settings import CacheSettings, Problem
from ditcast_service.translate.acceleration import cache_from_proto
from ditcast_service.translate.values import from_value, seconds_of, to_word


def request_from_proto(
    message: service_pb.GenerateRequest, images: tuple[InputImage, ...] = ()
) -> tuple[Request, list[Problem]]:
    """Read a request, and find what has no place in the domain.

    `images` are its pictures, decoded: their bytes go another way.
    """
    problems: list[Problem] = []
    request = Request(
        prompt=message.prompt,
        negative_prompt=_optional(message, "negative_prompt"),
        width=_optional(message, "width"),
        height=_optional(message, "height"),
        num_inference_steps=_optional(message, "num_inference_steps"),
        guidance_scale=_optional(message, "guidance_scale"),
        true_cfg_scale=_optional(message, "true_cfg_scale"),
        seed=_optional(message, "seed"),
        num_images=message.num_images,
        sigmas=tuple(message.sigmas),
        pipeline_kwargs=_keywords(message, problems),
        output=_output(message.output, problems),
        cache=_cache(message, problems),
        timeout=_timeout(message, problems),
        priority=_priority(message, problems),
        continues=_continues(message, problems),
        reattach_window=_reattach_window(message, problems),
        num_frames=_optional(message, "num_frames"),
        fps=_optional(message, "fps"),
        images=images,
        adapters=_adapters(message),
        previews=_previews(message.progress, problems),
        shadow_comparison=message.shadow_comparison,
    )
    return request, problems


def digest(message: service_pb.GenerateRequest) -> bytes:
    """Give what two requests share that ask for the same: SHA-256 without id and progress."""
    content = service_pb.GenerateRequest()
    content.CopyFrom(message)
    content.ClearField("request_id")
    content.ClearField("progress")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def _optional(message: Message, name: str) -> Any:  # noqa: ANN401 (the field's own type)
    return getattr(message, name) if message.HasField(name) else None


def _adapters(message: service_pb.GenerateRequest) -> tuple[AdapterWeight, ...]:
    return tuple(
        AdapterWeight(name=each.name, weight=each.weight if each.HasField("weight") else 1.0)
        for each in message.adapters
    )


def _output(message: pb.OutputOptions, problems: list[Problem]) -> AskedOutput:
    quality = _optional(message, "quality")
    try:
        word = to_word(pb.OutputFormat.DESCRIPTOR, message.format)
    except KeyError:
        reason = f"this version knows no format {message.format}"
        problems.append(Problem("output.format", reason))
        return AskedOutput()
    return AskedOutput(format=None if word is None else OutputFormat(word), quality=quality)


def _cache(message: service_pb.GenerateRequest, problems: list[Problem]) -> CacheSettings | None:
    if not message.HasField("cache"):
        return None
    try:
        return cache_from_proto(message.cache)
    except ValueError as error:
        problems.append(Problem("cache", str(error)))
        return None


def _timeout(message: service_pb.GenerateRequest, problems: list[Problem]) -> float | None:
    if not message.HasField("timeout"):
        return None
    seconds = seconds_of(message.timeout)
    if seconds <= 0:
        problems.append(Problem("timeout", f"{seconds:g} s is out of range: over 0"))
    return seconds


def _continues(message: service_pb.GenerateRequest, problems: list[Problem]) -> bool:
    try:
        return to_word(pb.DisconnectPolicy.DESCRIPTOR, message.on_disconnect) == "continue"
    except KeyError:
        reason = f"this version knows no policy {message.on_disconnect}"
        problems.append(Problem("on_disconnect", reason))
        return False


def _reattach_window(message: service_pb.GenerateRequest, problems: list[Problem]) -> float:
    if not message.HasField("reattach_window"):
        return 0.0
    if message.on_disconnect == pb.DISCONNECT_POLICY_CONTINUE:
        reason = "what goes on without readers waits for none: leave it unset"
        problems.append(Problem("reattach_window", reason))
    seconds = seconds_of(message.reattach_window)
    if seconds < 0:
        problems.append(Problem("reattach_window", f"{seconds:g} s is out of range: from 0"))
    return seconds


def _previews(message: pb.ProgressOptions, problems: list[Problem]) -> PreviewOptions:
    every = message.preview_every_n_steps
    side = message.preview_max_side if message.HasField("preview_max_side") else None
    if every < 0:
        reason = f"{every} is out of range: from 0, for none"
        problems.append(Problem("progress.preview_every_n_steps", reason))
    if side is not None and not 16 <= side <= 1024:  # noqa: PLR2004 (the contract's range)
        reason = f"{side} is out of range: 16 to 1024 pixels"
        problems.append(Problem("progress.preview_max_side", reason))
    usual = PreviewOptions()
    return PreviewOptions(every_n_steps=every, max_side=usual.max_side if side is None else side)


def _priority(message: service_pb.GenerateRequest, problems: list[Problem]) -> Priority:
    try:
        word = to_word(pb.Priority.DESCRIPTOR, message.priority)
    except KeyError:
        reason = f"this version knows no priority {message.priority}"
        problems.append(Problem("priority", reason))
        return Priority.NORMAL
    return Priority.NORMAL if word is None else Priority[word.upper()]


def _keywords(
    message: service_pb.GenerateRequest, problems: list[Problem]
) -> dict[str, KeywordValue]:
    values: dict[str, KeywordValue] = {}
    for name in sorted(message.pipeline_kwargs.fields):
        try:
            values[name] = from_value(message.pipeline_kwargs.fields[name])
        except ValueError as error:
            problems.append(Problem(f"pipeline_kwargs.{name}", str(error)))
    return values
