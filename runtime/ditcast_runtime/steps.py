"""Turns what a pipeline does on its way into steps: its progress bar, its callback, its scheduler.

Who watches is told when denoising begins, when each step ends and when it is over. A pipeline that
calls nobody back is watched through its scheduler's `step`; one without either says nothing.
"""

from __future__ import annotations

import enum
import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator
from types import MethodType, TracebackType
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


class StepSource(enum.Enum):
    """What tells that a step of a pipeline ended."""

    CALLBACK = enum.auto()
    SCHEDULER = enum.auto()
    NOTHING = enum.auto()

    @classmethod
    def of(cls, pipe: Any) -> StepSource:
        """Find it: the callback where the call takes one."""
        if "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters:
            return cls.CALLBACK
        scheduler = getattr(pipe, "scheduler", None)
        return cls.SCHEDULER if callable(getattr(scheduler, "step", None)) else cls.NOTHING


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


class _ReportedStep:
    """Stands in for a scheduler's `step`: does it, then tells that it is done."""

    def __init__(self, scheduler: Any, ended: Callable[[Any], None]) -> None:
        # With it the signature: pipelines look there for what a scheduler takes.
        functools.update_wrapper(self, scheduler.step)
        self._scheduler = scheduler
        self._before = vars(scheduler).get("step")
        self._step = scheduler.step
        self._ended = ended

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        made = self._step(*args, **kwargs)
        self._ended(kwargs.get("timestep", args[1] if len(args) > 1 else None))
        return made

    def take_away(self) -> None:
        """Give the scheduler what it had before."""
        if self._before is None:
            del self._scheduler.step
        else:
            self._scheduler.step = self._before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of the scheduler has steps of its own: this one would take them in the original.
        copied = memo[id(self._scheduler)]
        return MethodType(type(copied).step, copied)


class Stages:
    """Turns what the pipeline calls back into what a watcher is told."""

    def __init__(self, pipe: Any, watcher: Watcher, device: torch.device) -> None:
        self._pipe = pipe
        self._watcher = watcher
        self._steps = 0
        self._before = 0
        """Steps of earlier denoising loops of the same call."""
        self._total = 0
        self._began = False
        self._first: int | None = None
        """Where in the scheduler's timesteps the present loop began; None before its first step."""
        self._timesteps: list[float] = []
        self._sigmas: tuple[float, ...] = ()
        self._cuda = device.type == "cuda"
        self._previous: torch.cuda.Event | None = None

    def attach(self, arguments: dict[str, Any]) -> None:
        """Have the pipeline call this for the time of one call; `detach` ends it."""
        self._pipe.progress_bar = self._bar
        match StepSource.of(self._pipe):
            case StepSource.CALLBACK:
                arguments["callback_on_step_end"] = self._called_back
                arguments["callback_on_step_end_tensor_inputs"] = []
            case StepSource.SCHEDULER:
                scheduler = self._pipe.scheduler
                scheduler.step = _ReportedStep(scheduler, self._step_ended)
            case StepSource.NOTHING:
                pass

    def begin(self, total: float | None) -> None:
        """Take note that a denoising loop begins: of most calls the only one."""
        scheduler = getattr(self._pipe, "scheduler", None)
        # One copy from the device for all steps: an .item() at each would drain its queue.
        self._timesteps = _numbers(getattr(scheduler, "timesteps", None))
        self._sigmas = tuple(_numbers(getattr(scheduler, "sigmas", None)))
        self._before = self._steps
        self._first = None
        self._total = self._before + _loop_length(scheduler, total, len(self._timesteps))
        if self._began:
            return
        self._began = True
        self._refuse_impossible(scheduler)
        self._watcher.denoising_began(self._sigmas)

    def _refuse_impossible(self, scheduler: Any) -> None:
        count = len(self._timesteps)
        if not all(math.isfinite(level) for level in (*self._timesteps, *self._sigmas)):
            raise ScheduleRefused(f"the scheduler has no finite noise levels for {count} steps")
        # Schedulers without sigmas look noise levels up by timestep, and some lay out more of them
        # than there are: DDIM with an offset and as many steps as it was trained with.
        known = getattr(scheduler, "alphas_cumprod", None)
        beyond = known is not None and max(self._timesteps, default=0) >= len(known)
        if beyond and not self._sigmas:
            raise ScheduleRefused(f"the scheduler has no noise levels for {count} steps")

    def end(self) -> None:
        """Take note that a denoising loop ended."""
        if self._began:
            self._watcher.denoising_ended()

    def _bar(self, iterable: Any = None, total: int | None = None) -> _DenoisingBar:
        """Stand in for `DiffusionPipeline.progress_bar`."""
        return _DenoisingBar(iterable, total, self)

    def _called_back(self, _pipe: Any, _index: int, timestep: Any, _tensors: Any) -> dict[str, Any]:
        """Be the pipeline's `callback_on_step_end`."""
        self._step_ended(timestep)
        return {}

    def _step_ended(self, timestep: Any) -> None:
        if not self._began:
            return
        self._keep_device_close()
        if self._first is None:
            # A loop may begin in the middle of the schedule, as it does from a given picture.
            value = next(iter(_numbers(timestep)), 0.0)
            self._first = self._timesteps.index(value) if value in self._timesteps else 0
        place = self._first + self._steps - self._before
        self._steps += 1
        level = self._timesteps[place] if place < len(self._timesteps) else 0.0
        # Some schedulers keep those of their training there, which stand for no steps.
        fits = len(self._timesteps) <= len(self._sigmas) <= len(self._timesteps) + 1
        sigma = self._sigmas[place] if fits and place < len(self._sigmas) else None
        self._watcher.step_ended(self._steps, max(self._total, self._steps), level, sigma)

    def _keep_device_close(self) -> None:
        # Without it the host queues all steps in a moment: step times would be launch times, and a
        # cancel would trail behind the queued kernels. One step of slack keeps the device busy.
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
            if self._previous is not None:
                self._previous.synchronize()
            self._previous = event


def detach(pipe: Any) -> None:
    """Take away whatever `attach` put in."""
    pipe.__dict__.pop("progress_bar", None)
    step = getattr(getattr(pipe, "scheduler", None), "step", None)
    if isinstance(step, _ReportedStep):
        step.take_away()


def _numbers(values: Any) -> list[float]:
    if values is None:
        return []
    return [float(value) for value in torch.as_tensor(values).flatten().tolist()]


def _loop_length(scheduler: Any, total: float | None, timesteps: int) -> int:
    """Give how often a loop goes round whose bar counts to `total`.

    Bars count what was asked for: schedulers of second order go round twice for each but the last,
    some go round once more.
    """
    if not total:
        return timesteps
    order = int(getattr(scheduler, "order", 1) or 1)
    asked = getattr(scheduler, "num_inference_steps", None)
    if not asked or not timesteps:
        return int(total)
    return min(int(total) * order + timesteps - int(asked) * order, timesteps)


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Give the seconds since the last lap and begin the next."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
