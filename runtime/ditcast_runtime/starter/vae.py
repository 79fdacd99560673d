"""The autoencoder of the embedded model: 8x smaller each way, with 8 channels."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    AutoencoderKLQwenImage,
    QwenImageAttentionBlock,
    QwenImageCausalConv3d,
    QwenImageResidualBlock,
)
from torch import Tensor, nn
from tqdm import tqdm

from ditcast_runtime.starter import checkpoint, scenes
from ditcast_runtime.starter.muon import Muon
from ditcast_runtime.starter.planes import Planes
from ditcast_runtime.starter.schedule import set_learning_rate, share_of_learning_rate

CHANNELS = 8
FACTOR = 8
"""A latent is FACTOR times smaller than its picture in each direction."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VaePlan:
    """How long the autoencoder is trained, and how."""

    joint_steps: int = 2400
    """Steps in which encoder and decoder learn together."""
    decoder_steps: int = 1600
    """Steps after those in which the decoder alone learns, from latents with more noise."""
    batch: int = 16
    """Crops of 64x64 pixels a step; a step of whole pictures has about as many pixels."""
    muon_lr: float = 2.5e-3
    adamw_lr: float = 2e-3
    decoder_lr_share: float = 0.6
    """Of both rates, in the second stage."""
    warm_up_steps: int = 100
    joint_decay_share: float = 0.5
    """Of the steps, at the end, over which the learning rates fall to zero."""
    decoder_decay_share: float = 0.7
    edge_weight: float = 0.5
    """Of the loss of differences between neighbouring pixels."""
    kl_weight: float = 1e-3
    """Of the divergence per latent element from a standard normal distribution."""
    ramp_steps: int = 300
    """Over these both weights rise from zero: colours come first."""
    joint_noise: float = 0.2
    decoder_noise: float = 0.3
    """Most noise put on latents, as a share of their standard deviation: what the transformer
    makes is never quite right, and a decoder that has seen noise draws clean outlines from it."""
    measured_pictures: int = 512
    """Of 128x128, over which mean and deviation of the latents are taken at the end."""
    checkpoint_steps: int = 200
    compiled: bool = True
    seed: int = 0


TINY = VaePlan(joint_steps=2, decoder_steps=1, batch=2, measured_pictures=2, compiled=False)
"""Goes through everything in seconds, and learns nothing."""


def train_vae(work: Path, plan: VaePlan, device: torch.device) -> None:
    """Train from where it was left, and write `work/vae`."""
    joint = work / "vae_joint"
    if not joint.exists():
        _train(build(plan.seed), plan, joint, device, decoder_only=False)
    model = AutoencoderKLQwenImage.from_pretrained(joint)
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(requires_grad=False)
    _train(model, plan, work / "vae", device, decoder_only=True)


def build(seed: int) -> AutoencoderKLQwenImage:
    """Make an untrained autoencoder of 2.5 M parameters."""
    torch.manual_seed(seed)
    vae: Any = AutoencoderKLQwenImage(
        base_dim=16, z_dim=CHANNELS, dim_mult=[1, 2, 4, 4], num_res_blocks=1
    )
    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d):
            _initialise(module)
        if isinstance(module, QwenImageResidualBlock):
            module.conv2.weight.data *= 0.3
        if isinstance(module, QwenImageAttentionBlock):
            module.proj.weight.data *= 0.3
    vae.encoder.conv_out.weight.data[CHANNELS:] *= 0.1
    vae.decoder.conv_out.weight.data *= 0.3
    # The posterior starts narrow: with a width of 1 the decoder would see mostly noise at first.
    vae.quant_conv.bias.data[CHANNELS:] = -2
    for name, parameter in vae.named_parameters():
        if "time_conv" in name:  # used from the second frame of a video on
            parameter.requires_grad = False
    made: AutoencoderKLQwenImage = vae
    return made


@torch.no_grad()
def _initialise(convolution: QwenImageCausalConv3d) -> None:
    """Start with unit variance through the one temporal tap that a picture reaches.

    PyTorch's default counts the other taps too and damps every layer by the square root of 3.
    """
    taps = convolution.weight[:, :, -1]
    convolution.weight.zero_()
    nn.init.normal_(taps, std=1 / math.sqrt(taps[0].numel()))
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def to_pixels(pictures: list[scenes.Picture]) -> Tensor:
    """Turn pictures of one size into (n, 3, h, w) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def _crops(count: int, rng: np.random.Generator) -> Tensor:
    """Draw pictures and cut 64x64 out of each, at the best of three places by contrast."""
    crops = []
    for _ in range(count):
        width, height = scenes.TRAINED_SIZES[rng.integers(len(scenes.TRAINED_SIZES))]
        picture = scenes.draw(scenes.sample_trained(rng), width, height, rng)
        tops, lefts = rng.integers(height - 63, size=3), rng.integers(width - 63, size=3)
        cuts = [
            picture[top : top + 64, left : left + 64] for top, left in zip(tops, lefts, strict=True)
        ]
        crops.append(max(cuts, key=lambda cut: cut.std()))
    return to_pixels(crops)


def _whole_pictures(pixels: int, rng: np.random.Generator) -> Tensor:
    """Draw whole pictures of one of the sizes, about as many as make up so many pixels."""
    width, height = scenes.TRAINED_SIZES[rng.integers(len(scenes.TRAINED_SIZES))]
    count = max(1, pixels // (width * height))
    return to_pixels(
        [scenes.draw(scenes.sample_trained(rng), width, height, rng) for _ in range(count)]
    )


def _reconstruction_loss(made: Tensor, wanted: Tensor, edges: float) -> Tensor:
    """L1 and squared error of pixels, and L1 of the differences between neighbours."""
    error = made.float() - wanted
    across, down = error.diff(dim=3).abs().mean(), error.diff(dim=2).abs().mean()
    return error.abs().mean() + error.square().mean() + edges * (across + down)


def _disturbed(latents: Tensor, most: float) -> Tensor:
    """Add noise of 0 to `most` standard deviations to each of the latents."""
    deviation = latents.detach().std(dim=(0, 2, 3), keepdim=True)
    share = most * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    return latents + share * deviation * torch.randn_like(latents)


def _loss(planes: Planes, pictures: Tensor, plan: VaePlan, ramp: float, *, halved: bool) -> Tensor:
    """Loss of encoder and decoder together; `ramp` in 0 to 1 weighs edges and divergence.

    `halved` asks that latents of half the size give pictures of half the size: latents whose
    neighbours may be averaged are smooth, which a diffusion model learns faster
    (https://arxiv.org/abs/2502.09509).
    """
    mean, log_variance = (each.float() for each in planes.encode(pictures))
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    drawn = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    latents, edges = _disturbed(drawn, plan.joint_noise), plan.edge_weight * ramp
    loss = _reconstruction_loss(planes.decode(latents), pictures, edges)
    if halved:
        small = planes.decode(F.avg_pool2d(latents, 2))
        loss = loss + 0.5 * _reconstruction_loss(small, F.avg_pool2d(pictures, 2), edges)
    return loss + ramp * plan.kl_weight * divergence


def _decoder_loss(planes: Planes, pictures: Tensor, plan: VaePlan) -> Tensor:
    with torch.no_grad():
        mean, _ = planes.encode(pictures)
    latents = _disturbed(mean.float(), plan.decoder_noise)
    return _reconstruction_loss(planes.decode(latents), pictures, plan.edge_weight)


def _train(
    model: AutoencoderKLQwenImage,
    plan: VaePlan,
    output: Path,
    device: torch.device,
    *,
    decoder_only: bool,
) -> None:
    """Train one of the two stages, from its checkpoint if there is one, and write `output`."""
    nn.Module.to(model, device)  # the model's own `to` has no proper types
    planes = Planes(model, compiled=plan.compiled)
    weights: dict[str, Tensor] = {
        name: each for name, each in model.named_parameters() if each.requires_grad
    }
    optimisers = _optimisers(weights)
    steps = plan.decoder_steps if decoder_only else plan.joint_steps
    decay = plan.decoder_decay_share if decoder_only else plan.joint_decay_share
    rates = {"muon": plan.muon_lr, "adamw": plan.adamw_lr}
    saved, facts = output.with_name(output.name + "_checkpoint"), checkpoint.Facts(step=0, loss=1.0)
    if saved.exists():
        facts = checkpoint.load(saved, weights, optimisers)
    loss = facts.loss
    bar = tqdm(range(facts.step, steps), output.name, initial=facts.step, total=steps)
    for step in bar:
        share = share_of_learning_rate(step, steps, plan.warm_up_steps, int(decay * steps))
        for name, optimiser in optimisers.items():
            rate = rates[name] * (plan.decoder_lr_share if decoder_only else 1)
            set_learning_rate(optimiser, share * rate)
        now = _gradients(planes, plan, step, decoder_only=decoder_only)
        nn.utils.clip_grad_norm_(weights.values(), 2.0)
        for optimiser in optimisers.values():
            optimiser.step()
            optimiser.zero_grad()
        loss += 0.02 * (now - loss)
        bar.set_postfix(loss=f"{loss:.4f}")
        if (step + 1) % plan.checkpoint_steps == 0:
            checkpoint.save(saved, weights, optimisers, checkpoint.Facts(step=step + 1, loss=loss))
    _measure_latents(planes, plan)
    model.save_pretrained(output)


def _gradients(planes: Planes, plan: VaePlan, step: int, *, decoder_only: bool) -> float:
    """Put the gradients of one step's pictures into the model, and give the loss."""
    rng = np.random.default_rng([plan.seed, step])
    torch.manual_seed(plan.seed * 1_000_000 + step)
    whole = step % 4 == 3  # noqa: PLR2004 - most steps see crops, which have more outline
    pictures = _whole_pictures(plan.batch * 64 * 64, rng) if whole else _crops(plan.batch, rng)
    device = planes.model.device
    pictures = pictures.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        if decoder_only:
            loss = _decoder_loss(planes, pictures, plan)
        else:
            loss = _loss(planes, pictures, plan, min(1, step / plan.ramp_steps), halved=whole)
    torch.autograd.backward(loss)
    return loss.item()


def _optimisers(weights: dict[str, Tensor]) -> dict[str, torch.optim.Optimizer]:
    """Muon for the convolutions, AdamW for biases and norms."""
    kernels = [each for name, each in weights.items() if name.endswith("weight")]
    others = [each for name, each in weights.items() if not name.endswith("weight")]
    return {
        "muon": Muon(kernels, momentum=0.9),
        "adamw": torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0),
    }


@torch.no_grad()
def _measure_latents(planes: Planes, plan: VaePlan) -> None:
    """Put mean and deviation of each channel into the config, where the pipeline looks for them."""
    rng = np.random.default_rng([plan.seed, plan.joint_steps])
    drawn = [
        scenes.draw(scenes.sample_trained(rng), 128, 128, rng)
        for _ in range(plan.measured_pictures)
    ]
    pictures = to_pixels(drawn).to(planes.model.device)
    means = torch.cat([planes.encode(part)[0] for part in pictures.split(16)])
    planes.model.register_to_config(
        latents_mean=means.mean(dim=(0, 2, 3)).tolist(),
        latents_std=means.std(dim=(0, 2, 3)).tolist(),
    )
