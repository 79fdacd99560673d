"""Compares the pictures of a plan, as they are made one after another.

Prompt by prompt: so one picture without a cache is held at a time, and a candidate that is far off
is given up after its first. Every other prompt takes the candidates in the other direction: if the
machine slows down on the way, that is not always to the same ones' harm.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ditcast_service.refusals import ConfigurationChanged
from ditcast_service.tuning.figures import Comparison, Figures, figures, is_hopeless
from ditcast_service.tuning.painting import Moment, Painted, Painter
from ditcast_service.tuning.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a sweep is."""

    done: int
    """Generations."""
    total: int
    """Generations, if no more candidates are dropped."""
    prompt: int
    candidate: int | None
    """None: without a cache."""
    moment: Moment


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A comparison, and whether its candidate is given up with it."""

    comparison: Comparison
    dropped: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What a sweep came to."""

    figures: tuple[Figures, ...]
    uncached_seconds: float
    """Median, of denoising."""


Tell = Callable[[Progress | Compared], Awaitable[None]]


class Sweep:
    """One plan on its way."""

    def __init__(self, plan: Plan, painter: Painter, tell: Tell) -> None:
        self._plan = plan
        self._painter = painter
        self._tell = tell
        self._comparisons: dict[int, list[Comparison]] = {}
        self._alive = list(range(len(plan.candidates)))
        self._uncached_seconds: list[float] = []
        self._revision: int | None = None
        self.total = len(plan.prompts) * (1 + len(plan.candidates))
        """Generations, as it looks now."""

    @property
    def done(self) -> int:
        """Generations that are done."""
        return self._painter.done

    async def run(self) -> Finished:
        """Make and compare all; leaving here cancels what runs.

        Raises:
            ConfigurationChanged: pictures of two revisions cannot be compared.
            RuntimeFailure: a generation was refused, or ended without a result.
        """
        for prompt in range(len(self._plan.prompts)):
            if self._alive:
                await self._compare_all(prompt)
        found = (
            figures(comparisons, dropped=candidate not in self._alive)
            for candidate, comparisons in sorted(self._comparisons.items())
        )
        return Finished(
            figures=tuple(found), uncached_seconds=statistics.median(self._uncached_seconds)
        )

    async def _compare_all(self, prompt: int) -> None:
        from ditcast_runtime.likeness import compare  # noqa: PLC0415 - see there

        uncached = await self._paint(prompt, None)
        self._uncached_seconds.append(uncached.denoise_seconds)
        for candidate in self._alive[:: -1 if prompt % 2 else 1]:
            painted = await self._paint(prompt, candidate)
            # In a thread: seconds for a large picture, and the event loop serves everybody.
            psnr, ssim = await asyncio.to_thread(
                compare,
                uncached.pixels,
                painted.pixels,
                painted.parameters.width,
                painted.parameters.height,
            )
            comparison = Comparison(
                candidate=candidate,
                prompt=prompt,
                psnr=psnr,
                ssim=ssim,
                cached_steps=painted.cached_steps,
                total_steps=painted.parameters.num_inference_steps,
                seconds=painted.denoise_seconds,
                uncached_seconds=uncached.denoise_seconds,
            )
            await self._take(comparison)

    async def _take(self, comparison: Comparison) -> None:
        candidate = comparison.candidate
        comparisons = self._comparisons.setdefault(candidate, [])
        comparisons.append(comparison)
        left = len(self._plan.prompts) - comparison.prompt - 1
        dropped = left > 0 and is_hopeless(comparisons, self._plan.target_psnr)
        if dropped:
            self._alive.remove(candidate)
            self.total -= left if self._alive else left * 2
        await self._tell(Compared(comparison=comparison, dropped=dropped))

    async def _paint(self, prompt: int, candidate: int | None) -> Painted:
        async def watch(moment: Moment) -> None:
            progress = Progress(
                done=self.done, total=self.total, prompt=prompt, candidate=candidate, moment=moment
            )
            await self._tell(progress)

        painted = await self._painter.paint(self._plan.request(prompt, candidate), watch)
        if self._revision is None:
            self._revision = painted.revision
        if painted.revision != self._revision:
            raise ConfigurationChanged(self._revision, painted.revision)
        return painted
