"""How often a pipeline runs its transformer in a step: counted, not concluded from names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ditcast_runtime.steps import Watcher


class PassesDiffer(Exception):
    """A step ran its transformer more or less often than the cache was set for."""


class Passes:
    """Counts how often each transformer runs in a step: watches a generation, and tells nobody."""

    def __init__(self, transformers: Sequence[torch.nn.Module], num_inference_steps: int) -> None:
        self._transformers = transformers
        self._calls = [0] * len(transformers)
        self._steps = num_inference_steps
        self._most = 0
        self.masked = False
        """Whether a transformer was given one mask over text and picture."""

    @property
    def most(self) -> int:
        """Calls of one transformer in one step, the most there were."""
        # Of a pipeline that tells of no steps all of them are still there.
        return max([self._most, *(-(-calls // self._steps) for calls in self._calls)])

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count for as long as the context lasts."""
        held = [vars(module).get("_compiled_call_impl") for module in self._transformers]
        for index, module in enumerate(self._transformers):
            # Where torch.compile puts its own: a hook would become part of what is compiled.
            module._compiled_call_impl = self._counting(index, module)  # noqa: SLF001
        try:
            yield
        finally:
            for module, before in zip(self._transformers, held, strict=True):
                vars(module).pop("_compiled_call_impl")
                if before is not None:
                    module._compiled_call_impl = before  # noqa: SLF001

    def take(self) -> int:
        """Give the calls of one transformer in the step that ended, and begin with the next."""
        calls, self._calls = self._calls, [0] * len(self._calls)
        return max(calls, default=0)

    def denoising_began(self, sigmas: tuple[float, ...]) -> None:
        """Tell nobody."""

    def step_ended(self, *_: object, **__: object) -> None:
        """Begin to count the next step."""
        self._most = max(self._most, self.take())

    def denoising_ended(self) -> None:
        """Tell nobody."""

    def _counting(self, index: int, module: Any) -> Any:
        run = module._compiled_call_impl or module._call_impl  # noqa: SLF001

        def call(*args: Any, **kwargs: Any) -> Any:
            self._calls[index] += 1
            self.masked = self.masked or _has_joint_mask(kwargs)
            return run(*args, **kwargs)

        return call


class CheckedPasses:
    """Tells a watcher what it is told, and leaves at a step that the cache was not set for.

    cache-dit counts passes and takes each for what comes next by its settings: with one too many or
    too few it would mix what it keeps of the two, and say nothing.
    """

    def __init__(self, watcher: Watcher, passes: Passes, expected: int) -> None:
        self._watcher = watcher
        self._passes = passes
        self._expected = expected

    def denoising_began(self, sigmas: tuple[float, ...]) -> None:
        """Tell it."""
        self._watcher.denoising_began(sigmas)

    def step_ended(self, step: int, total_steps: int, timestep: float, sigma: float | None) -> None:
        """Look at the passes, then tell it."""
        made = self._passes.take()
        if made != self._expected:
            raise PassesDiffer(
                f"the cache is set for {self._expected} passes in each step, and step {step} made"
                f" {made}: these arguments can only be had without a cache"
            )
        self._watcher.step_ended(step, total_steps, timestep, sigma)

    def denoising_ended(self) -> None:
        """Tell it."""
        self._watcher.denoising_ended()


def _has_joint_mask(given: dict[str, Any]) -> bool:
    mask, text = given.get("attention_mask"), given.get("encoder_hidden_states")
    own = given.get("encoder_attention_mask")
    return isinstance(mask, torch.Tensor) and isinstance(text, torch.Tensor) and own is None
