"""From what a pipeline returns to what travels to the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

_FRAMES_DIMENSIONS = 5
"""Dimensions of videos: outputs, frames, and those of a picture."""


class NotFinite(Exception):
    """The output holds NaN or infinity."""


class OtherSize(Exception):
    """The pipeline makes another size than it was asked for, as a few do."""


class NoLatents(Exception):
    """The pipeline gave something else where it was asked for its latents."""


@dataclass(frozen=True, slots=True)
class Made:
    """All outputs of one generation, equally large."""

    outputs: list[bytes]
    """Of each its frames, 8-bit RGB rows from the top; or its latents, as a safetensors file."""
    width: int = 0
    """Pixels; 0: latents."""
    height: int = 0
    num_frames: int | None = None
    """Of each output; None: pictures."""

    @property
    def size_bytes(self) -> int:
        """Bytes of each output."""
        return len(self.outputs[0])


def to_pixels(returned: Any) -> Made:
    """Give the pixels of pictures or videos, however a pipeline returns them.

    Raises:
        NotFinite: the output holds NaN or infinity.
    """
    pixels = _to_bytes(_to_tensor(returned))
    num_frames = pixels.shape[1] if pixels.dim() == _FRAMES_DIMENSIONS else None
    height, width = pixels.shape[-3:-1]
    return Made([each.numpy().tobytes() for each in pixels], width, height, num_frames)


def to_latents(returned: Any, count: int) -> Made:
    """Give the latents of so many outputs, each as a file with one tensor, `latents`.

    Raises:
        NotFinite: they hold NaN or infinity.
        NoLatents: it is no tensor that falls into so many parts.
    """
    if not isinstance(returned, torch.Tensor) or returned.shape[0] % count:
        raise NoLatents(f"the pipeline gave {type(returned).__name__} in place of {count} latents")
    if not bool(torch.isfinite(returned).all()):
        raise NotFinite
    parts = returned.cpu().chunk(count)
    return Made([safetensors.torch.save({"latents": part.contiguous()}) for part in parts])


def _to_tensor(returned: Any) -> torch.Tensor:
    """Give floats from 0 to 1, or bytes, with the channels last."""
    match returned:
        case torch.Tensor():
            return returned.movedim(-3, -1)
        case np.ndarray():
            return torch.from_numpy(returned)
        case Image.Image():
            return torch.from_numpy(np.array(returned.convert("RGB")))
        case [*parts] if parts:
            return torch.stack([_to_tensor(part) for part in parts])
    raise TypeError(f"the pipeline gave {type(returned).__name__} in place of pictures")


def _to_bytes(images: torch.Tensor) -> torch.Tensor:
    images = _to_rgb(images)
    if images.dtype == torch.uint8:
        return images.contiguous().cpu()
    images = images.float()
    if not bool(torch.isfinite(images).all()):
        raise NotFinite
    # Rounded as diffusers' numpy_to_pil does, so that the bytes are those of a direct call.
    return images.mul(255).round().to(torch.uint8).contiguous().cpu()


def _to_rgb(images: torch.Tensor) -> torch.Tensor:
    """Give three channels: of a grey picture all the same, of one with alpha the colours."""
    channels = images.shape[-1]
    return images.expand(*images.shape[:-1], 3) if channels == 1 else images[..., :3]
