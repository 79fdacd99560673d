"""Steps are told of as a pipeline takes them: by its callback, or by its scheduler's `step`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
)
from tests.service.fakes import FACTS

from ditcast_runtime.passes import CheckedPasses, Passes, PassesDiffer
from ditcast_runtime.steps import Stages, StepSource, detach
from ditcast_runtime.warm_up import _uncached

STEPS = 4
CPU = torch.device("cpu")


class Seen:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.began = 0
        self.ended = 0
        self.steps: list[tuple[int, int]] = []
        self.timesteps: list[float] = []

    def denoising_began(self, *_: object) -> None:
        """Count it."""
        self.began += 1

    def step_ended(self, step: int, total_steps: int, timestep: float, *_: object) -> None:
        """Keep it."""
        self.steps.append((step, total_steps))
        self.timesteps.append(timestep)

    def denoising_ended(self) -> None:
        """Count it."""
        self.ended += 1


class Silent:
    """A pipeline that calls nobody back, and denoises from a step on, so many times."""

    def __init__(self, scheduler: object, begin: int = 0, loops: int = 1) -> None:
        self.scheduler: Any = scheduler
        self.begin = begin
        self.loops = loops
        self.transformer: Any = torch.nn.Linear(1, 1)
        self.progress_bar: Callable[..., Any]

    def __call__(self) -> None:
        """Denoise."""
        for _ in range(self.loops):
            self.scheduler.set_timesteps(STEPS)
            timesteps = self.scheduler.timesteps[self.begin :]
            if self.begin:
                self.scheduler.set_begin_index(self.begin)
            latents = torch.ones(1, 1)
            with self.progress_bar(total=STEPS - self.begin) as bar:
                for index, timestep in enumerate(timesteps):
                    noise = self.transformer(latents)
                    latents = self.scheduler.step(noise, timestep, latents).prev_sample
                    self.after(index, timestep)
                    bar.update()

    def after(self, index: int, timestep: torch.Tensor) -> None:
        """Do nothing after a step."""


class Calling(Silent):
    """A pipeline that calls back after each step."""

    def __call__(self, callback_on_step_end: Callable[..., Any] | None = None, **_: object) -> None:
        """Denoise."""
        self.callback = callback_on_step_end
        super().__call__()

    def after(self, index: int, timestep: torch.Tensor) -> None:
        """Call back."""
        assert self.callback is not None
        self.callback(self, index, timestep, {})


def watch(pipe: Silent) -> Seen:
    """Run it, and give what was seen."""
    seen = Seen()
    arguments: dict[str, Any] = {}
    Stages(pipe, seen, CPU).attach(arguments)
    with torch.inference_mode():
        pipe(**arguments)
    detach(pipe)
    return seen


@pytest.mark.parametrize("kind", [Silent, Calling])
@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [
        (DDIMScheduler, STEPS),
        (FlowMatchEulerDiscreteScheduler, STEPS),
        (FlowMatchHeunDiscreteScheduler, 2 * STEPS - 1),
        (PNDMScheduler, 13),
    ],
)
def test_every_step_of_a_scheduler_is_told_of_and_foretold(
    kind: type[Silent], scheduler: Callable[[], object], steps: int
) -> None:
    """Schedulers of second order go round twice, others once more: the total says so."""
    pipe = kind(scheduler())
    seen = watch(pipe)
    assert seen.steps == [(step, steps) for step in range(1, steps + 1)]
    assert seen.timesteps == [float(each) for each in pipe.scheduler.timesteps]
    assert (seen.began, seen.ended) == (1, 1)


@pytest.mark.parametrize("kind", [Silent, Calling])
def test_a_loop_may_begin_in_the_middle_of_the_schedule(kind: type[Silent]) -> None:
    """From a given picture only the last steps are taken; they have their own noise levels."""
    pipe = kind(FlowMatchEulerDiscreteScheduler(), begin=1)
    seen = watch(pipe)
    assert seen.steps == [(1, 3), (2, 3), (3, 3)]
    assert seen.timesteps == [float(each) for each in pipe.scheduler.timesteps[1:]]


def test_steps_go_on_counting_in_a_second_loop() -> None:
    """A call with several loops tells of each step once, and begins once."""
    seen = watch(Silent(DDIMScheduler(), loops=2))
    assert [step for step, _ in seen.steps] == list(range(1, 2 * STEPS + 1))
    assert seen.steps[-1] == (2 * STEPS, 2 * STEPS)
    assert seen.began == 1


def test_the_scheduler_is_itself_again_afterwards() -> None:
    """Nothing of a generation stays behind, and what was there before is."""
    pipe = Silent(DDIMScheduler())
    watch(pipe)
    assert "step" not in vars(pipe.scheduler)
    assert "progress_bar" not in vars(pipe)
    mine = pipe.scheduler.step = lambda *given: DDIMScheduler.step(pipe.scheduler, *given)
    assert len(watch(pipe).steps) == STEPS
    assert pipe.scheduler.step is mine


def test_a_copy_of_the_scheduler_takes_steps_of_its_own() -> None:
    """Pipelines that copy their scheduler get one that works, and its steps are not told of."""
    pipe, seen = Silent(DDIMScheduler()), Seen()
    Stages(pipe, seen, CPU).attach({})
    copied = copy.deepcopy(pipe.scheduler)
    copied.set_timesteps(STEPS)
    copied.step(torch.ones(1), copied.timesteps[0], torch.ones(1))
    assert copied.step.__self__ is copied
    assert seen.steps == []


def test_a_pipeline_without_callback_and_scheduler_tells_nothing() -> None:
    """It cannot be left at a step, and the capabilities say so."""
    assert StepSource.of(Calling(None)) is StepSource.CALLBACK
    assert StepSource.of(Silent(DDIMScheduler())) is StepSource.SCHEDULER
    assert StepSource.of(Silent(None)) is StepSource.NOTHING


@pytest.mark.parametrize("kind", [Silent, Calling])
@pytest.mark.parametrize("passes", [1, 2])
def test_passes_are_counted(kind: type[Silent], passes: int) -> None:
    """The most runs of the transformer in any step count; those of several steps do not add up."""
    pipe = kind(DDIMScheduler())
    pipe.transformer = _Again(passes)
    counter = Passes([pipe.transformer.inner], STEPS)
    arguments: dict[str, Any] = {}
    Stages(pipe, counter, CPU).attach(arguments)
    with counter.counted(), torch.inference_mode():
        pipe(**arguments)
    assert counter.most == passes
    assert "_compiled_call_impl" not in vars(pipe.transformer.inner)


@pytest.mark.parametrize("kind", [Silent, Calling])
def test_a_step_of_other_passes_than_the_cache_is_set_for_is_not_gone_on_from(
    kind: type[Silent],
) -> None:
    """The cache would take the pass for another's; the steps before it are told of."""
    pipe, seen = kind(DDIMScheduler()), Seen()
    pipe.transformer = _Again(2, then=1)
    passes = Passes([pipe.transformer.inner], 1)
    arguments: dict[str, Any] = {}
    Stages(pipe, CheckedPasses(seen, passes, 2), CPU).attach(arguments)
    with (
        passes.counted(),
        torch.inference_mode(),
        pytest.raises(PassesDiffer, match="step 2 made 1"),
    ):
        pipe(**arguments)
    assert [step for step, _ in seen.steps] == [1]


def test_more_passes_than_cache_dit_can_tell_apart_are_not_cached() -> None:
    """With three passes a step it would take the third for the next step, and mix its buffers."""
    found = _uncached(FACTS, 3)
    assert all(not each.possible and "3 times" in each.reason for each in found.cache_methods)


class _Again(torch.nn.Module):
    """Runs another one several times, and from the second time on so many."""

    def __init__(self, times: int, then: int | None = None) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(1, 1)
        self.times = times
        self.then = times if then is None else then

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Run it."""
        for _ in range(self.times):
            given = self.inner(given)
        self.times = self.then
        return given
