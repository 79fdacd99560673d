"""Puts together what each step of the transformer's training learns from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from torch import Tensor

from ditcast_runtime.starter import latents, vae
from ditcast_runtime.starter.text_encoder import NULL_PROMPT, Encoder


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FeedPlan:
    """What is drawn for a step."""

    tokens: int = 11264
    """Of image and text, over all ranks: 128 pictures of 128x128."""
    null_share: float = 0.1
    """Of the captions that are replaced by the null prompt, for true CFG."""
    uniform_share: float = 0.15
    """Of the times; the others are logistic-normal around `time_mean`."""
    time_mean: float = 0.4


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """n pictures of s tokens, with captions of l tokens."""

    noisy: Tensor
    """(n, s, 32): latents, in units of their deviation, mixed with noise."""
    velocity: Tensor
    """(n, s, 32): noise - latents."""
    times: Tensor
    """(n): 0 for latents alone, 1 for noise alone."""
    states: Tensor
    """(n, l, 128)."""
    mask: Tensor
    """(n, l), bool."""
    grid: tuple[int, int]
    """Rows and columns of image tokens."""


class Feeder:
    """Gives each step its batch, which depends on nothing but the plan, the step and the rank."""

    def __init__(
        self,
        work: Path,
        plan: FeedPlan,
        seed: list[int],
        rank: int,
        ranks: int,
        device: torch.device,
    ) -> None:
        config: Any = AutoencoderKLQwenImage.load_config(work / "vae")
        self._mean = torch.tensor(config["latents_mean"])[:, None, None]
        self._deviation = torch.tensor(config["latents_std"])[:, None, None]
        self._null_states, self._null_mask = latents.encode_captions(
            Encoder.load(work), [NULL_PROMPT]
        )
        self._samples = latents.load_samples(work)
        self._plan, self._seed, self._device = plan, seed, device
        self._rank, self._tokens = rank, plan.tokens // ranks

    def batch(self, step: int) -> Batch:
        """Draw a batch of one size, on all ranks the same; rows, times and noise differ."""
        sizes, shares = list(latents.SHARES), list(latents.SHARES.values())
        chosen = np.random.default_rng([*self._seed, step]).choice(len(sizes), p=shares)
        width, height = sizes[chosen]
        grid = height // (2 * vae.FACTOR), width // (2 * vae.FACTOR)
        rng = np.random.default_rng([*self._seed, step, self._rank])
        random = torch.Generator().manual_seed(int(rng.integers(2**62)))
        count = max(1, self._tokens // (grid[0] * grid[1] + latents.TEXT_LENGTH))
        clean, states, mask = self._rows(self._samples[width, height], count, random)
        times = self._times(count, random)
        noise = torch.randn(clean.shape, generator=random)
        noisy = torch.lerp(clean, noise, times[:, None, None, None])
        return Batch(
            noisy=_packed(noisy).to(self._device),
            velocity=_packed(noise - clean).to(self._device),
            times=times.to(self._device),
            states=states.to(self._device),
            mask=mask.to(self._device),
            grid=grid,
        )

    def _rows(
        self, samples: latents.Samples, count: int, random: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose samples: latents in units of their deviation, states and mask, cut to length."""
        rows = torch.randint(len(samples.latents), (count,), generator=random)
        dropped = torch.rand(count, generator=random) < self._plan.null_share
        states, mask = samples.states[rows].float(), samples.mask[rows]
        states[dropped], mask[dropped] = self._null_states.float(), self._null_mask
        length = int(mask.sum(dim=1).max())
        clean = (samples.latents[rows].float() - self._mean) / self._deviation
        return clean, states[:, :length], mask[:, :length]

    def _times(self, count: int, random: torch.Generator) -> Tensor:
        times = torch.sigmoid(torch.randn(count, generator=random) + self._plan.time_mean)
        evenly = torch.rand(count, generator=random) < self._plan.uniform_share
        return torch.where(evenly, torch.rand(count, generator=random), times)


def _packed(planes: Tensor) -> Tensor:
    """Turn (n, 8, h, w) into tokens (n, h/2 w/2, 32), in the pipeline's order."""
    packed: Tensor = QwenImagePipeline._pack_latents(planes, *planes.shape)  # noqa: SLF001
    return packed
