"""Runs the autoencoder on pictures as what they are to it: videos of one frame.

`AutoencoderKLQwenImage` is a causal video model, which puts frames of zeros in front of a video: of
a picture each 3x3x3 convolution sees something with the last of its temporal taps only. `Planes`
runs the same weights as 2D convolutions, which gives the same numbers in a third of the time.
Training uses it; the pipeline runs the model as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    AutoencoderKLQwenImage,
    QwenImageAttentionBlock,
    QwenImageCausalConv3d,
    QwenImageMidBlock,
    QwenImageResample,
    QwenImageResidualBlock,
    QwenImageRMS_norm,
)
from torch import Tensor, nn


class Planes:
    """An autoencoder, for pictures (n, 3, h, w) in [-1, 1] and latents (n, 8, h/8, w/8)."""

    def __init__(self, model: AutoencoderKLQwenImage, *, compiled: bool) -> None:
        self.model = model
        # Norms and activations would take more than half of a step: they move much memory and
        # compute little, and compiled they move it once.
        self._fused: Callable[[Tensor, Tensor], Tensor] = (
            torch.compile(_normalise_and_activate, dynamic=True)
            if compiled
            else _normalise_and_activate
        )

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and log-variance: those of `model.encode(pictures[:, :, None]).latent_dist`."""
        encoder: Any = self.model.encoder
        x = _convolve(encoder.conv_in, pictures)
        for layer in encoder.down_blocks:
            resamples = isinstance(layer, QwenImageResample)
            x = layer.resample(x) if resamples else self._residual(layer, x)
        x = self._middle(encoder.mid_block, x)
        x = _convolve(encoder.conv_out, self._activate(encoder.norm_out, x))
        mean, log_variance = _convolve(self.model.quant_conv, x).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Give pictures: `model.decode(latents[:, :, None]).sample`, not yet cut to [-1, 1]."""
        decoder: Any = self.model.decoder
        x = _convolve(decoder.conv_in, _convolve(self.model.post_quant_conv, latents))
        x = self._middle(decoder.mid_block, x)
        for block in decoder.up_blocks:
            for residual in block.resnets:
                x = self._residual(residual, x)
            for upsampler in block.upsamplers or ():
                x = upsampler.resample(x)
        return _convolve(decoder.conv_out, self._activate(decoder.norm_out, x))

    def _residual(self, block: QwenImageResidualBlock, x: Tensor) -> Tensor:
        shortcut = block.conv_shortcut
        kept = x if isinstance(shortcut, nn.Identity) else _convolve(shortcut, x)
        x = _convolve(block.conv1, self._activate(block.norm1, x))
        return kept + _convolve(block.conv2, self._activate(block.norm2, x))

    def _middle(self, block: QwenImageMidBlock, x: Tensor) -> Tensor:
        residuals: list[Any] = list(block.resnets)
        attentions: list[Any] = list(block.attentions)
        x = _attend(attentions[0], self._residual(residuals[0], x))
        return self._residual(residuals[1], x)

    def _activate(self, norm: QwenImageRMS_norm, x: Tensor) -> Tensor:
        return self._fused(x, norm.gamma.view(-1, 1, 1) * norm.scale)


def _convolve(convolution: QwenImageCausalConv3d, x: Tensor) -> Tensor:
    # QwenImageCausalConv3d pads by itself, and keeps by how much (left first) in _padding.
    padding: Any = convolution._padding[0]  # noqa: SLF001
    weight, bias = convolution.weight[:, :, -1], convolution.bias
    return F.conv2d(x, weight, bias, padding=padding)


def _attend(block: QwenImageAttentionBlock, x: Tensor) -> Tensor:
    normal = F.normalize(x.float(), dim=1) * (block.norm.gamma * block.norm.scale)
    queries, keys, values = block.to_qkv(normal.to(x.dtype)).flatten(2).mT.chunk(3, dim=-1)
    seen = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None])
    projected: Tensor = block.proj(seen[:, 0].mT.reshape(x.shape))
    return x + projected


def _normalise_and_activate(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.float()
    length = wide.square().sum(dim=1, keepdim=True).add(1e-24).rsqrt()
    return F.silu(wide * length * gain).to(x.dtype)
