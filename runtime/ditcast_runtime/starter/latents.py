"""What the transformer learns from: latents and text states, made once and kept in memory.

Drawing a picture and encoding it takes half as long as a training step with it, and each is used
several times.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from ditcast_runtime.starter import scenes, vae
from ditcast_runtime.starter.planes import Planes
from ditcast_runtime.starter.text_encoder import Encoder

TEXT_LENGTH = 24
"""Tokens to which text states are padded; the longest caption has 21."""

_PATTERN = "*-{}x{}.safetensors"

SHARES: dict[tuple[int, int], float] = {
    (128, 128): 0.64,
    (96, 96): 0.1,
    (64, 64): 0.06,
    (192, 128): 0.06,
    (128, 192): 0.06,
    (160, 160): 0.05,
    (256, 256): 0.03,
}
"""(width, height) to the share of training steps that use pictures of this size."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SamplesPlan:
    """How many samples are drawn."""

    count: int = 66560
    shard: int = 512
    """Samples a file, all of one size."""
    compiled: bool = True
    seed: int = 0


TINY = SamplesPlan(count=14, shard=2, compiled=False)
"""Goes through everything in seconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Samples:
    """Pictures of one size, as the transformer sees them."""

    latents: Tensor
    """(n, 8, h/8, w/8), means of the posterior, float16."""
    states: Tensor
    """(n, TEXT_LENGTH, 128), float16, zero where the mask is False."""
    mask: Tensor
    """(n, TEXT_LENGTH), bool: which text states are there."""


def draw_samples(work: Path, plan: SamplesPlan, device: torch.device) -> None:
    """Write `work/latents`, one file a shard; those that are there are kept."""
    model = AutoencoderKLQwenImage.from_pretrained(work / "vae")
    nn.Module.to(model, device)  # the model's own `to` has no proper types
    planes = Planes(model, compiled=plan.compiled)
    encoder = Encoder.load(work)
    folder = work / "latents"
    folder.mkdir(exist_ok=True)
    for index, (width, height) in enumerate(tqdm(_sizes_of_shards(plan), "latents")):
        path = folder / f"{index:04}-{width}x{height}.safetensors"
        if not path.exists():
            rng = np.random.default_rng([plan.seed, 1, index])
            samples = _draw_shard(planes, encoder, (width, height), plan.shard, rng)
            unfinished = path.with_suffix(".part")
            save_file(dataclasses.asdict(samples), unfinished)
            unfinished.rename(path)


def load_samples(work: Path) -> dict[tuple[int, int], Samples]:
    """Read all shards into memory, put together by size."""
    return {
        size: _joined(sorted((work / "latents").glob(_PATTERN.format(*size)))) for size in SHARES
    }


def encode_captions(encoder: Encoder, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Give states (n, TEXT_LENGTH, 128), float16, and mask (n, TEXT_LENGTH)."""
    states, mask = encoder.encode(captions)
    missing = TEXT_LENGTH - states.shape[1]
    if missing < 0:
        raise ValueError(f"a caption has {states.shape[1]} tokens, more than {TEXT_LENGTH}")
    mask = F.pad(mask, (0, missing))
    states = F.pad(states, (0, 0, 0, missing)) * mask[..., None]
    return states.half().cpu(), mask.cpu()


@torch.no_grad()
def _draw_shard(
    planes: Planes,
    encoder: Encoder,
    size: tuple[int, int],
    count: int,
    rng: np.random.Generator,
) -> Samples:
    drawn = [scenes.sample_trained(rng) for _ in range(count)]
    states, mask = encode_captions(encoder, [scenes.caption(scene, rng) for scene in drawn])
    pictures = vae.to_pixels([scenes.draw(scene, *size, rng) for scene in drawn])
    device = planes.model.device
    with torch.autocast(device.type, torch.bfloat16):
        parts = [planes.encode(part.to(device))[0].half().cpu() for part in pictures.split(16)]
    return Samples(torch.cat(parts).contiguous(), states, mask)


def _sizes_of_shards(plan: SamplesPlan) -> list[tuple[int, int]]:
    """Give the size (width, height) of each shard, the first of them all different."""
    sizes, shares, count = list(SHARES), list(SHARES.values()), plan.count // plan.shard
    further = np.random.default_rng([plan.seed, 2]).choice(len(sizes), size=count, p=shares)
    return (sizes + [sizes[index] for index in further])[:count]


def _joined(paths: list[Path]) -> Samples:
    shards = [load_file(path) for path in paths]
    names = [field.name for field in dataclasses.fields(Samples)]
    return Samples(**{name: torch.cat([shard[name] for shard in shards]) for name in names})
