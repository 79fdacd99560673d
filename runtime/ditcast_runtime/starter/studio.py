"""Paints the same pictures with and without caching, and says what it saved and what it changed."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from tqdm import tqdm

from ditcast_runtime import likeness
from ditcast_runtime.acceleration import Accelerator
from ditcast_runtime.events import CacheDecision
from ditcast_runtime.settings import Acceleration, CacheSettings, Disabled, parse_acceleration
from ditcast_runtime.starter.judge import Task, judge
from ditcast_runtime.starter.painter import Manner, Painter
from ditcast_runtime.starter.scenes import Picture

Options = dict[str, Any]
"""What stands under `cache_config` in cache-dit's own file format."""

LEAST_DECIBELS = 30.0
MOST_POINTS = 0.01
"""Of quality that the recommended settings may lose: a share of all pictures."""


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """What one setting does at one number of steps, with or without a negative prompt."""

    name: str
    options: Options
    steps: int
    negative_prompt: bool
    pictures: int
    batch: int
    """Pictures in one call of the pipeline."""
    cached_steps: float
    """Mean over the calls; of the pass with the prompt."""
    time_ratio: float
    """Cached to uncached: the median of pairs painted in turn."""
    uncached_seconds: float
    """Median for one call."""
    psnr: float
    """dB, mean over the pictures."""
    worst_psnr: float
    ssim: float
    worst_ssim: float
    quality: float
    """Share of pictures that are right in every respect, cached."""
    shapes: float
    """Share of pictures whose shapes are right, cached."""
    lost: float
    """Share by which `quality` is below the uncached pictures'; less than 0: above."""

    @property
    def keeps(self) -> bool:
        """Whether likeness and quality are kept well enough to recommend this."""
        return self.psnr >= LEAST_DECIBELS and self.lost <= MOST_POINTS


class Studio:
    """Two copies of one pipeline, so that cached and uncached pictures are painted in turn."""

    def __init__(self, model: Path, task: Task, manner: Manner, *, batch: int, pairs: int) -> None:
        """Paint the task without caching.

        Args:
            model: A pipeline folder.
            task: What is painted.
            manner: How.
            batch: Pictures in one call of the pipeline. What the cache decides, it decides for all
                of them.
            pairs: Calls at the beginning that are timed, cached and uncached in turn.
        """
        device = torch.device("cpu")
        self._plain = Painter.load(model, device)
        self._caching = Painter.load(model, device)
        self._accelerator = Accelerator(self._caching.pipe, Acceleration(), 1, device)
        self._accelerator.enable()
        self._task = task
        self._manner = manner
        self._batch = batch
        self._pairs = pairs
        self._cached_steps = 0
        self._uncached = [
            picture for start in self._starts("uncached") for picture in self._paint(start)[0]
        ]
        self._uncached_judgement = judge(task.scenes, self._uncached)

    def measure(self, name: str, options: Options) -> Figures:
        """Paint all with these settings, and the first calls' pictures without them, too."""
        settings = _settings(options, separate_cfg=self._manner.passes > 1)
        self._paint_cached(0, settings)  # the first call after a switch takes longer
        self._cached_steps = 0
        cached: list[Picture] = []
        seconds: list[tuple[float, float]] = []
        for start in self._starts(name):
            pictures, taken = self._paint_cached(start, settings)
            cached += pictures
            if len(seconds) < self._pairs:
                seconds.append((taken, self._paint(start)[1]))
        return self._figures(name, options, cached, seconds)

    def _starts(self, label: str) -> Iterator[int]:
        """Count through the task, in steps of one call's pictures, with a progress bar."""
        passes = "" if self._manner.negative_prompt is None else ", true CFG"
        starts = range(0, len(self._task.captions), self._batch)
        yield from tqdm(starts, desc=f"{label}{passes}", unit="call", leave=False)

    def _paint_cached(self, start: int, settings: CacheSettings) -> tuple[list[Picture], float]:
        manner = self._manner
        self._accelerator.switch(settings, manner.steps, two_passes=manner.passes > 1)
        painted = self._paint(start, self._caching, self._count_step)
        self._accelerator.reset()
        return painted

    def _count_step(self) -> None:
        for made in self._accelerator.decisions():
            self._cached_steps += made.decision is not CacheDecision.COMPUTED

    def _paint(
        self,
        start: int,
        painter: Painter | None = None,
        step_ended: Callable[[], None] | None = None,
    ) -> tuple[list[Picture], float]:
        """Paint one call's pictures, by default without caching; give them and the seconds."""
        part = slice(start, start + self._batch)
        captions, seeds = self._task.captions[part], self._task.seeds[part]
        began = time.perf_counter()
        pictures = (painter or self._plain).paint(captions, seeds, self._manner, step_ended)
        return pictures, time.perf_counter() - began

    def _figures(
        self, name: str, options: Options, cached: list[Picture], seconds: list[tuple[float, float]]
    ) -> Figures:
        judgement = judge(self._task.scenes, cached)
        pairs = list(zip(cached, self._uncached, strict=True))
        decibels = [likeness.psnr(*pair) for pair in pairs]
        similarities = [likeness.ssim(*pair) for pair in pairs]
        calls = -(-len(pairs) // self._batch)
        return Figures(
            name=name,
            options=options,
            steps=self._manner.steps,
            negative_prompt=self._manner.negative_prompt is not None,
            pictures=len(pairs),
            batch=self._batch,
            cached_steps=self._cached_steps / calls,
            time_ratio=statistics.median(one / other for one, other in seconds),
            uncached_seconds=statistics.median(other for _, other in seconds),
            psnr=statistics.mean(decibels),
            worst_psnr=min(decibels),
            ssim=statistics.mean(similarities),
            worst_ssim=min(similarities),
            quality=judgement.all_right,
            shapes=judgement.aspects["shape"],
            lost=self._uncached_judgement.all_right - judgement.all_right,
        )


def _settings(options: Options, *, separate_cfg: bool) -> CacheSettings:
    """Read settings as the service reads them from a file, for a known number of passes a step."""
    settings = parse_acceleration({"cache_config": options}, "cache_config").cache
    if isinstance(settings.method, Disabled):
        return settings
    method = msgspec.structs.replace(settings.method, enable_separate_cfg=separate_cfg)
    return dataclasses.replace(settings, method=method)
