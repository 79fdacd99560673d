"""What a generation took, for people: steps of each pass, the time of each stage, memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration

from ditcast.v1.generation_pb2 import (
    CacheReport,
    ShadowComparison,
    Timings,
    TransformerCacheReport,
)
from ditcast_client.result import Result
from ditcast_client.units import bytes_text, duration_text, seconds_text

Row: TypeAlias = tuple[str, str]
"""A label and what it says."""


def rows(result: Result) -> Iterator[Row]:
    """Give all figures of a generation in a few lines."""
    yield from _steps(result.cache)
    yield "time", _total(result.timings)
    yield "", _stages(result.timings)
    if result.shadow is not None:
        yield from _shadow(result.shadow)
    for memory in result.memory:
        peak, free = bytes_text(memory.peak_bytes), bytes_text(memory.free_bytes)
        yield "memory", f"rank {memory.rank}: {peak} at most, {free} free"


def _steps(cache: CacheReport) -> Iterator[Row]:
    """Count each transformer's steps by what the cache did, the passes of CFG apart."""
    several = len(cache.transformers) > 1
    reports: list[CacheReport | TransformerCacheReport] = [*cache.transformers]
    for index, row in enumerate(reports or [cache]):
        name = f"{row.name}: " if several and isinstance(row, TransformerCacheReport) else ""
        counts = (len(row.computed_steps), len(row.cached_steps), len(row.pruned_steps))
        yield "" if index else "steps", name + _counts(*counts)
        cfg = (len(row.cfg_computed_steps), len(row.cfg_cached_steps), len(row.cfg_pruned_steps))
        if any(cfg):
            yield "", f"{name}without the prompt: {_counts(*cfg)}"


def _counts(computed: int, cached: int, pruned: int) -> str:
    text = f"{computed + cached + pruned}: {computed} computed, {cached} cached"
    return f"{text}, {pruned} pruned" if pruned else text


def _total(timings: Timings) -> str:
    """Give the whole time, and what it is without the starts of ranks that it waited for."""
    total = duration_text(timings.total)
    starts = _time(timings.load) + _time(timings.warm_up)
    if not starts:
        return f"{total}, with warm-up excluded"
    waited = f"loading {duration_text(timings.load)} and warm-up {duration_text(timings.warm_up)}"
    rest = seconds_text((_time(timings.total) - starts).total_seconds())
    return f"{total}; {rest} with {waited} excluded"


def _stages(timings: Timings) -> str:
    previews = f", previews {duration_text(timings.previews)}" if _time(timings.previews) else ""
    step = f"a step {duration_text(timings.step_median)}{previews}"
    stages = (
        f"queued {duration_text(timings.queued)}",
        f"prepare {duration_text(timings.prepare)} (prompt {duration_text(timings.encode_prompt)})",
        f"denoise {duration_text(timings.denoise)} ({step})",
        f"decode {duration_text(timings.decode)}",
        f"encode {duration_text(timings.encode)}",
    )
    shadow = f", shadow {duration_text(timings.shadow)}" if _time(timings.shadow) else ""
    return ", ".join(stages) + shadow


def _shadow(shadow: ShadowComparison) -> Iterator[Row]:
    """Say how near the outputs are to those without a cache, and what the cache saved."""
    speed = 1 / shadow.time_ratio if shadow.time_ratio else 0
    uncached = duration_text(shadow.uncached_denoise)
    yield "uncached", f"denoise {uncached}; with the cache {speed:.2f} times as fast"
    for found in shadow.outputs:
        yield "", f"output {found.output_index} is at {found.psnr:.1f} dB, SSIM {found.ssim:.4f}"


def _time(duration: Duration) -> timedelta:
    return duration.ToTimedelta()
