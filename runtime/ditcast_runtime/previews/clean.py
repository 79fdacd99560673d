"""The final latents, foretold at a step from what the scheduler is given there.

By the scheduler's own configuration and methods, not by its class; `foretells` compares with what a
whole run ended with, so that a scheduler whose rules are others is found out.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

_FLOW = "flow_prediction"
_CLOSE = 0.2
"""Share of the final latents by which a forecast of the last step may be wrong: some solvers take
earlier steps into account at it."""


@dataclass(frozen=True, slots=True)
class StepCall:
    """What a scheduler was given at a step. Its tensors are the pipeline's own: only to be read."""

    model_output: torch.Tensor
    timestep: Any
    sample: torch.Tensor
    index: int | None
    """Place of the step among the scheduler's noise levels; None: it has none."""

    def rows(self, index: int, size: int) -> StepCall:
        """Give the part of it that is about one generation of a batch of this size."""
        if size == 1:
            return self
        output, sample = self.model_output.chunk(size)[index], self.sample.chunk(size)[index]
        return StepCall(output, self.timestep, sample, self.index)


@contextlib.contextmanager
def tapped(
    scheduler: Any, take: Callable[[StepCall], None], made: Callable[[Any], None] | None = None
) -> Iterator[None]:
    """Have `take` see what the scheduler is given at each step, and `made` what it makes of it."""
    before = scheduler.__dict__.get("step")
    inner = scheduler.step
    signature = inspect.signature(inner)

    # With the signature of the original: pipelines look at it to see what they may pass.
    @functools.wraps(inner)
    def step(*arguments: Any, **keywords: Any) -> Any:
        given = signature.bind(*arguments, **keywords).arguments
        timestep = given.get("timestep")
        index = _index(scheduler, timestep)
        take(StepCall(given["model_output"], timestep, given["sample"], index))
        result = inner(*arguments, **keywords)
        if made is not None:
            made(result)
        return result

    scheduler.step = step
    try:
        yield
    finally:
        if scheduler.__dict__.get("step") is step:
            scheduler.__dict__.pop("step")
            if before is not None:
                scheduler.step = before


def clean_latents(scheduler: Any, call: StepCall) -> torch.Tensor | None:
    """Give the latents without the noise that the model still sees; None: no rule is known."""
    sample, output = call.sample.float(), call.model_output.float()
    if output.shape != sample.shape:
        # With learned variances, which follow in the same axis.
        output = output[:, : sample.shape[1]]
    kind = scheduler.config.get("prediction_type") or _FLOW
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and call.index is not None:
        sigma = sigmas[call.index].to(sample.device, torch.float32)
        if hasattr(scheduler, "precondition_outputs"):
            return scheduler.precondition_outputs(sample, output, sigma)  # type: ignore[no-any-return]
        if kind == _FLOW:
            return _denoised(kind, sample, output, 1.0, sigma)
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            # The solvers' own word for what their samples are scaled by; they have no public one.
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)  # noqa: SLF001
            return _denoised(kind, sample, output, alpha, sigma)
        # Samples that grow with the noise; scaled down they are as the others.
        alpha = (1 + sigma**2) ** -0.5
        return _denoised(kind, sample * alpha, output, alpha, sigma * alpha)
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None or call.timestep is None:
        return None
    product = products[torch.as_tensor(call.timestep).flatten()[0].long().to(products.device)]
    product = product.to(sample.device, torch.float32)
    return _denoised(kind, sample, output, product**0.5, (1 - product) ** 0.5)


def foretells(scheduler: Any, last: StepCall, final: torch.Tensor) -> bool:
    """Say whether the rule gives, of the last step of a run, what the run ended with."""
    found = clean_latents(scheduler, last)
    if found is None or found.shape != final.shape:
        return False
    apart = (found - final.float()).norm()
    return bool(apart <= _CLOSE * final.float().norm())


def _denoised(
    kind: str, sample: torch.Tensor, output: torch.Tensor, alpha: Any, sigma: Any
) -> torch.Tensor | None:
    """Undo sample = alpha x clean + sigma x noise, by what the model's output means."""
    clean: torch.Tensor | None = None
    match kind:
        case "epsilon":
            clean = (sample - sigma * output) / alpha
        case "v_prediction":
            clean = alpha * sample - sigma * output
        case "sample":
            clean = output
        case "flow_prediction":
            clean = sample - sigma * output
    return clean


def _index(scheduler: Any, timestep: Any) -> int | None:
    """Give the place that the step is about to have; a scheduler settles it within the first."""
    for name in ("step_index", "begin_index"):
        index = getattr(scheduler, name, None)
        if index is not None:
            return int(index)
    find = getattr(scheduler, "index_for_timestep", None)
    return None if find is None else int(find(timestep))
