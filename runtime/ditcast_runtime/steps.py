"""Turns what a pipeline does on its way into steps: its progress bar, its callback.

Who watches is told when denoising begins, when each step ends and when it is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol

import torch
import tqdm


class ScheduleRefused(Exception):
    """The scheduler makes noise levels that are not finite of these steps, as some do of one."""


class Watcher(Protocol):
    """Who is told what happens while the pipeline runs, on the thread that runs it."""

    def denoising_began(self, sigmas: tuple[float, ...]) -> None:
        """Tell that the prompt is encoded and the first step begins."""

    def step_ended(self, step: int, total_steps: int, timestep: float, sigma: float | None) -> None:
        """Tell that a step ended, from 1; may leave the pipeline by raising."""

    def denoising_ended(self) -> None:
        """Tell that the last step ended and decoding begins."""


class _DenoisingBar(tqdm.tqdm):  # type: ignore[type-arg]
    """Stands in for the pipeline's progress bar, whose life is the denoising loop's in every kind.

    A disabled tqdm, so that whatever else a pipeline calls on its bar is there.
    """

    def __init__(self, iterable: Any, total: int | None, stages: Stages) -> None:
        super().__init__(iterable, total=total, disable=True)
        self._stages = stages
        stages.begin(self.total)

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        self._stages.end()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if kind is None:
            self._stages.end()


class Stages:
    """Turns what the pipeline calls back into what a watcher is told."""

    def __init__(self, pipe: Any, watcher: Watcher, device: torch.device) -> None:
        self._pipe = pipe
        self._watcher = watcher
        self._total = 0
        self._began = False
        self._timesteps: list[float] = []
        self._sigmas: tuple[float, ...] = ()
        self._cuda = device.type == "cuda"
        self._previous: torch.cuda.Event | None = None

    def bar(self, iterable: Any = None, total: int | None = None) -> _DenoisingBar:
        """Stand in for `DiffusionPipeline.progress_bar`."""
        return _DenoisingBar(iterable, total, self)

    def begin(self, total: float | None) -> None:
        """Take note that the denoising loop begins; a second bar in one call counts for nothing."""
        if self._began:
            return
        self._began = True
        scheduler = self._pipe.scheduler
        # One copy from the device for all steps: an .item() at each would drain its queue.
        self._timesteps = [float(value) for value in scheduler.timesteps.tolist()]
        sigmas = getattr(scheduler, "sigmas", None)
        self._sigmas = (
            tuple(float(value) for value in sigmas.tolist()) if sigmas is not None else ()
        )
        self._total = int(total or 0) or len(self._timesteps)
        if not all(math.isfinite(level) for level in (*self._timesteps, *self._sigmas)):
            count = len(self._timesteps)
            raise ScheduleRefused(f"the scheduler has no finite noise levels for {count} steps")
        self._watcher.denoising_began(self._sigmas)

    def step_ended(self, _pipe: Any, index: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        """Be the pipeline's `callback_on_step_end`."""
        self._keep_device_close()
        timestep = self._timesteps[index] if index < len(self._timesteps) else 0.0
        sigma = self._sigmas[index] if index < len(self._sigmas) else None
        self._watcher.step_ended(index + 1, self._total, timestep, sigma)
        return {}

    def end(self) -> None:
        """Take note that the denoising loop ended."""
        if self._began:
            self._watcher.denoising_ended()

    def _keep_device_close(self) -> None:
        # Without it the host queues all steps in a moment: step times would be launch times, and a
        # cancel would trail behind the queued kernels. One step of slack keeps the device busy.
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
            if self._previous is not None:
                self._previous.synchronize()
            self._previous = event


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Give the seconds since the last lap and begin the next."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
