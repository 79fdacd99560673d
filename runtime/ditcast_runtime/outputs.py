"""From what a pipeline returns to what travels to the service."""

from __future__ import annotations

import torch


class NotFinite(Exception):
    """The output holds NaN or infinity."""


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Give uint8 pixels (images, height, width, 3) on the host of floats from 0 to 1.

    Raises:
        NotFinite: the output holds NaN or infinity.
    """
    images = images.float()
    if not bool(torch.isfinite(images).all()):
        raise NotFinite
    # Rounded as diffusers' numpy_to_pil does, so that the bytes are those of a direct call.
    pixels = images.mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu()
