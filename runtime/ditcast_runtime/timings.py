"""Where the time of a generation went: its stages, and what it waited for ranks that started."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

from ditcast_runtime.accepted import Generation
from ditcast_runtime.events import Completed, StepCompleted, Timings, TransformerCacheReport

_REMEMBERED = 1024
"""Spans of starts that are kept: more than happen while any generation waits."""


@dataclass(slots=True)
class _Span:
    """Ranks that loaded, or warmed up; `end` is infinite while they do."""

    warm_up: bool
    begin: float
    end: float = float("inf")

    def overlap(self, since: float, until: float) -> float:
        """Give the seconds of it between two times."""
        return max(0.0, min(self.end, until) - max(self.begin, since))


@dataclass(frozen=True, slots=True)
class Waited:
    """Seconds that passed while no ranks served."""

    load: float
    warm_up: float


class Starts:
    """When ranks were loading and warming up, on the monotonic clock."""

    def __init__(self) -> None:
        self._spans: deque[_Span] = deque(maxlen=_REMEMBERED)

    def load(self, now: float) -> None:
        """Ranks are needed, and begin to load."""
        self.serve(now)
        self._spans.append(_Span(warm_up=False, begin=now))

    def warm_up(self, now: float) -> None:
        """All ranks have loaded, and warm up."""
        self.serve(now)
        self._spans.append(_Span(warm_up=True, begin=now))

    def serve(self, now: float) -> None:
        """The ranks serve."""
        if self._spans and self._spans[-1].end > now:
            self._spans[-1].end = now

    def waited(self, since: float, until: float) -> Waited:
        """Say what of the time between two moments passed with loading and warming up."""
        parts = [0.0, 0.0]
        for span in self._spans:
            parts[span.warm_up] += span.overlap(since, until)
        return Waited(load=parts[0], warm_up=parts[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Seconds of the stages of the run that came to a result, each told by who made it."""

    prepare: float
    encode_prompt: float
    denoise: float
    decode: float
    encode: float
    previews: float


def timings_of(generation: Generation, run: Measured, starts: Starts, now: float) -> Timings:
    """Account for all of a generation's time: what a start takes is in no other stage."""
    before = starts.waited(generation.accepted_at, generation.started_at)
    whole = starts.waited(generation.accepted_at, now)
    queued = generation.started_at - generation.accepted_at
    return Timings(
        queued=max(0.0, queued - before.load - before.warm_up),
        load=whole.load,
        warm_up=whole.warm_up,
        prepare=run.prepare,
        encode_prompt=run.encode_prompt,
        denoise=run.denoise,
        step_median=_median(generation.steps),
        decode=run.decode,
        previews=run.previews,
        encode=run.encode,
        total=now - generation.accepted_at,
    )


def log_fields(completed: Completed) -> dict[str, object]:
    """Give what a generation took, as fields of its one line in the log."""
    timings = completed.timings
    names = ("queued", "load", "warm_up", "prepare", "encode_prompt", "denoise", "decode", "encode")
    fields: dict[str, object] = {
        f"{name}_seconds": round(getattr(timings, name), 4) for name in names
    }
    if completed.receipt.batch_size > 1:
        fields["batch_size"] = completed.receipt.batch_size
    fields["step_median_seconds"] = round(timings.step_median, 5)
    if timings.shadow:
        fields["shadow_seconds"] = round(timings.shadow, 4)
    fields["prompts_encoded"] = completed.prompts.encoded
    fields["prompts_reused"] = completed.prompts.reused
    fields["cache"] = {row.name: _counts(row) for row in completed.cache}
    fields["peak_bytes"] = [row.peak_bytes for row in completed.memory]
    fields["free_bytes"] = [row.free_bytes for row in completed.memory]
    return fields


def _counts(row: TransformerCacheReport) -> dict[str, int]:
    """Count the steps of one transformer by what became of them, passes apart."""
    kinds = ("computed", "cached", "pruned", "cfg_computed", "cfg_cached", "cfg_pruned")
    counts = {kind: len(getattr(row, f"{kind}_steps")) for kind in kinds}
    return {kind: count for kind, count in counts.items() if count}


def _median(steps: list[StepCompleted]) -> float:
    return statistics.median(step.step_duration for step in steps) if steps else 0.0


def stage_text(stage: str, bytes_done: int, bytes_total: int) -> str:
    """Say what ranks that load are doing, and how far they are with it."""
    if bytes_total:
        return f"{stage}, {_gibibytes(bytes_done)} of {_gibibytes(bytes_total)} GiB"
    return f"{stage}, {_gibibytes(bytes_done)} GiB" if bytes_done else stage


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.2f}"
