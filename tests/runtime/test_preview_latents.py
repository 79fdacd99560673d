# ruff: noqa: ANN401 (diffusers says no types)
"""Previews foretell the final latents at every step, find out how latents lie, and fit colours."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch

from ditcast_runtime.previews.clean import StepCall, clean_latents, foretells, tapped
from ditcast_runtime.previews.colours import ColourMap, chart, fit
from ditcast_runtime.previews.layout import find_layout

# diffusers hands torch tensors to numpy in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

SHAPE = (1, 4, 6, 6)
NOISE_KINDS = ("epsilon", "v_prediction", "sample")
FLOW = (
    diffusers.FlowMatchEulerDiscreteScheduler(),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
)
NOISE = tuple(
    kind(prediction_type=prediction, clip_sample=False)
    if "clip_sample" in inspect.signature(kind).parameters
    else kind(prediction_type=prediction)
    for kind in (
        diffusers.DDIMScheduler,
        diffusers.DDPMScheduler,
        diffusers.EulerDiscreteScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.UniPCMultistepScheduler,
        diffusers.CogVideoXDDIMScheduler,
    )
    for prediction in NOISE_KINDS
    if (kind, prediction) != (diffusers.EulerDiscreteScheduler, "sample")
)


def _named(scheduler: Any) -> str:
    return f"{type(scheduler).__name__} {scheduler.config.get('prediction_type')}"


def _target(
    kind: str, clean: torch.Tensor, noise: torch.Tensor, noisy: torch.Tensor
) -> torch.Tensor:
    """Give what a perfect model would put out for a sample with unit variance."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    # Of noisy = alpha x clean + sigma x noise, whose squares add up to one.
    alpha = (
        (noisy * clean).sum() - (noisy * noise).sum() * (clean * noise).sum() / noise.square().sum()
    ) / (clean.square().sum() - (clean * noise).sum() ** 2 / noise.square().sum())
    return alpha * noise - (1 - alpha**2).sqrt() * clean


@pytest.mark.parametrize("place", [0, 4, 8])
@pytest.mark.parametrize("scheduler", FLOW, ids=_named)
def test_flow_schedulers_are_foretold(scheduler: Any, place: int) -> None:
    """Of a sample that the scheduler itself made noisy, a perfect model gives the clean one."""
    scheduler.set_timesteps(10)
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    sigma = scheduler.sigmas[place]
    call = StepCall(
        noise - clean, scheduler.timesteps[place], (1 - sigma) * clean + sigma * noise, place
    )
    found = clean_latents(scheduler, call)
    assert found is not None
    assert torch.allclose(found, clean, atol=1e-4)


@pytest.mark.parametrize("place", [0, 4, 8])
@pytest.mark.parametrize("scheduler", NOISE, ids=_named)
def test_noise_schedulers_are_foretold(scheduler: Any, place: int) -> None:
    """The same for those that predict noise, velocity or the sample."""
    scheduler.set_timesteps(10)
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    timestep = scheduler.timesteps[place]
    noisy = scheduler.add_noise(clean, noise, timestep[None])
    grows = isinstance(scheduler, diffusers.EulerDiscreteScheduler)
    unit = noisy / (1 + scheduler.sigmas[place] ** 2).sqrt() if grows else noisy
    output = _target(scheduler.config.prediction_type, clean, noise, unit)
    index = place if hasattr(scheduler, "step_index") else None
    found = clean_latents(scheduler, StepCall(output, timestep, noisy, index))
    assert found is not None
    # At the first step next to nothing of the sample is left in float32.
    assert torch.allclose(found, clean, atol=0.02)


@pytest.mark.parametrize("scheduler", [*FLOW, *NOISE], ids=_named)
def test_a_run_ends_with_what_its_last_step_foretells(scheduler: Any) -> None:
    """By this a pipeline whose rule is another one is found out in the warm-up."""
    scheduler.set_timesteps(4)
    seen: list[StepCall] = []
    sample = torch.randn(SHAPE)
    with tapped(scheduler, seen.append):
        for timestep in scheduler.timesteps:
            sample = scheduler.step(torch.randn(SHAPE), timestep, sample, return_dict=False)[0]
    assert [call.index for call in seen] in ([0, 1, 2, 3], [None] * 4)
    assert "step" not in vars(scheduler)
    assert foretells(scheduler, seen[-1], sample)
    assert not foretells(scheduler, seen[-1], torch.randn(SHAPE) * 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", ["tokens", "spatial", "channels last", "frames first", "frames"])
def test_the_layout_of_latents_is_found_out(packed: str, dtype: torch.dtype) -> None:
    """However they are packed, scaled and shifted: what the decoder got comes out, at any size."""

    def both(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        frames = 3 if "frames" in packed else 1
        decoded = torch.randn(2, 4, frames, rows, columns)
        scale = torch.tensor([0.5, 2.0, -1.0, 3.0])[:, None, None, None]
        latents = ((decoded - 0.3) / scale).to(dtype)
        match packed:
            case "tokens":
                folded = latents[:, :, 0].unflatten(2, (-1, 2)).unflatten(4, (-1, 2))
                return folded.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), decoded[:, :, 0]
            case "spatial":
                return latents[:, :, 0], decoded[:, :, 0]
            case "channels last":
                return latents[:, :, 0].movedim(1, -1), decoded[:, :, 0]
            case "frames first":
                return latents.movedim(1, 2), decoded
        return latents, decoded

    learned_from, decoded = both(8, 12)
    layout = find_layout(learned_from, decoded, 64)
    assert layout is not None
    latents, decoded = both(6, 4)
    found = layout.decoder_values(latents, 32, 48)
    expected = decoded if decoded.ndim == 4 else decoded[:, :, 1]
    assert found is not None
    assert torch.allclose(found, expected, atol=1e-5 if dtype is torch.float32 else 0.05)


@pytest.mark.parametrize(
    ("width", "height", "rows", "columns"),
    [
        (96, 64, slice(None), slice(None)),
        (80, 80, slice(None), slice(2, 10)),
        (96, 32, slice(2, 6), slice(None)),
    ],
    ids=["scaled", "cut at the sides", "cut above and below"],
)
def test_what_is_rendered_at_another_size_is_shown_as_it_will_be_cut(
    width: int, height: int, rows: slice, columns: slice
) -> None:
    """Some pipelines choose the size, and give its middle; the latents alone tell."""
    learned_from = torch.randn(1, 4, 6, 6)
    layout = find_layout(learned_from, learned_from * 2, 48)
    assert layout is not None
    latents = torch.randn(1, 4, 8, 12)
    found = layout.decoder_values(latents, width, height)
    assert found is not None
    assert torch.allclose(found, 2 * latents[:, :, rows, columns], atol=1e-5)


def test_latents_that_the_decoder_does_not_get_have_no_layout() -> None:
    """What is not moved and scaled alone is not taken for it."""
    assert find_layout(torch.randn(1, 96, 16), torch.randn(1, 4, 16, 24), 128) is None
    assert find_layout(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), 64) is None
    assert find_layout(torch.randn(1, 77), torch.randn(1, 4, 8, 8), 64) is None


def test_colours_are_fitted_where_they_follow_from_the_values() -> None:
    """The map gives the colours of cells it never saw, coarser ones too; noise gives no map."""
    picture = chart(160) / 2 + 0.5
    values = torch.nn.functional.pixel_unshuffle(picture, 8)[:, ::16]
    colours = fit(values, picture)
    assert isinstance(colours, ColourMap)
    for longest in (20, 40, 80, 30):
        drawn = colours.colours(values, longest)
        assert drawn.shape == (1, 3, longest, longest)
        expected = torch.nn.functional.adaptive_avg_pool2d(picture, longest)
        assert (drawn - expected).abs().mean() < 0.12
    assert fit(torch.randn(values.shape), picture) is None
    assert fit(torch.full(values.shape, torch.nan), picture) is None
