"""What happens to a generation, in the domain's own words.

An `Event` stands in the generation's log under a sequence number; heartbeats are the edge's
own and never stand there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime

from ditcast_runtime.generation import Parameters, Receipt


class CacheDecision(enum.StrEnum):
    """What the cache did for one pass of one transformer in one step."""

    COMPUTED = "computed"
    CACHED = "cached"
    PRUNED = "pruned"


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerDecision:
    """One block list's decision in one step; `name` is cache-dit's context name."""

    name: str
    decision: CacheDecision
    residual_diff: float | None = None
    """Relative L1 difference measured in this step; None where the step was forced to compute."""
    cfg_decision: CacheDecision | None = None
    """The unconditional pass's decision; None where the step makes one pass."""
    cfg_residual_diff: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Queued:
    """It waits. `position` 0 runs next; the wait is in seconds, None before any was measured."""

    position: int
    estimated_wait: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The ranks took it; everything is settled."""

    parameters: Parameters
    configuration_revision: int
    world_size: int
    epoch: int
    batch_size: int = 1
    """Generations that share the call, itself too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCompleted:
    """One denoising step ended on all ranks. `step` counts from 1; durations are in seconds."""

    step: int
    total_steps: int
    timestep: float
    sigma: float | None
    step_duration: float
    estimated_remaining: float
    transformers: tuple[TransformerDecision, ...]
    """The main transformer first; empty only where the pipeline has no transformer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestWarning:
    """Something that was asked for has no effect, or was changed; the generation goes on."""

    field: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Restarted:
    """Its ranks were lost, or its batch failed, and it begins again: steps count from 1."""

    attempt: int
    """Which run begins, from 2."""
    max_attempts: int
    epoch: int
    """Of the group that it begins again on."""
    reason: str
    """Why the ranks were lost, or the run failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A small picture of what an output would be after `step`."""

    step: int
    output_index: int
    media_type: str
    width: int
    height: int
    data: bytes
    """Empty: a newer one has taken its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputChunk:
    """A part of one encoded output."""

    output_index: int
    media_type: str
    total_bytes: int
    offset: int
    data: bytes | memoryview


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Seconds of each stage; `encode` runs beside the next generation."""

    queued: float
    prepare: float
    denoise: float
    decode: float
    encode: float
    total: float
    load: float = 0.0
    """Of `total`: waiting for ranks that loaded; in none of the other stages."""
    warm_up: float = 0.0
    """Of `total`: waiting for ranks that warmed up; in none of the other stages."""
    encode_prompt: float = 0.0
    """Of `prepare`: the pipeline's own part, before its first step."""
    step_median: float = 0.0
    previews: float = 0.0
    """Of `denoise`: making previews."""
    shadow: float = 0.0
    """Waiting for a shadow comparison, and making it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptUse:
    """Calls of the pipeline's text encoding in a generation: with true CFG there are two."""

    encoded: int = 0
    reused: int = 0
    """Not made, since the same was encoded before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerCacheReport:
    """Which steps (from 1) one block list computed, cached and pruned, for each pass."""

    name: str
    computed_steps: tuple[int, ...] = ()
    cached_steps: tuple[int, ...] = ()
    pruned_steps: tuple[int, ...] = ()
    cfg_computed_steps: tuple[int, ...] = ()
    cfg_cached_steps: tuple[int, ...] = ()
    cfg_pruned_steps: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Bytes on one rank: of the device, or on cpu resident and available on the host."""

    rank: int
    peak_bytes: int
    free_bytes: int


MOST_DECIBELS = 60.0
"""PSNR is cut off here, about where only the rounding to 8 bits differs: a mean over pictures must
not hang on those few that are exactly the same."""

LEAST_SIDE = 11
"""Pixels of SSIM's window: it says nothing of smaller pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputLikeness:
    """How near an output is to the one without a cache."""

    output_index: int
    psnr: float
    """dB, at most `MOST_DECIBELS`."""
    ssim: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowComparison:
    """How the outputs of a generation compare to those of the same without a cache."""

    outputs: tuple[OutputLikeness, ...]
    uncached_denoise: float
    """Seconds of denoising without the cache."""
    time_ratio: float
    """Of denoising, with the cache to without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """The last event of a generation that succeeded."""

    receipt: Receipt
    timings: Timings
    prompts: PromptUse
    cache: tuple[TransformerCacheReport, ...]
    memory: tuple[RankMemory, ...]
    shadow: ShadowComparison | None = None
    """None: not asked for, or it could not be made."""


EventKind = (
    Queued
    | Started
    | StepCompleted
    | Preview
    | RequestWarning
    | Restarted
    | OutputChunk
    | Completed
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One entry of the log; `sequence` counts from 1 without gaps."""

    sequence: int
    time: datetime
    kind: EventKind = field()


def cache_report(steps: list[StepCompleted]) -> tuple[TransformerCacheReport, ...]:
    """Gather the steps' decisions into one report for each transformer, in the steps' order."""
    rows: dict[str, dict[str, list[int]]] = {}
    for event in steps:
        for transformer in event.transformers:
            row = rows.setdefault(transformer.name, {})
            row.setdefault(f"{transformer.decision}_steps", []).append(event.step)
            if transformer.cfg_decision is not None:
                row.setdefault(f"cfg_{transformer.cfg_decision}_steps", []).append(event.step)
    return tuple(
        TransformerCacheReport(name=name, **{key: tuple(value) for key, value in row.items()})
        for name, row in rows.items()
    )
