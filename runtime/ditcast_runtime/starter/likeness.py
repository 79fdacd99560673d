"""How much one picture is like another: PSNR and SSIM, both from their definitions."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ditcast_runtime.starter.scenes import Picture

MOST_DECIBELS = 60.0
"""PSNR is cut off here, about where only the rounding to 8 bits differs: a mean over pictures must
not hang on those few that are exactly the same."""

_LEVELS = 255.0
_WINDOW = 11
_SIGMA = 1.5


def psnr(one: Picture, other: Picture) -> float:
    """Give the peak signal-to-noise ratio in dB, at most `MOST_DECIBELS`."""
    error = float(np.square(one.astype(np.float64) - other).mean())
    if error == 0:
        return MOST_DECIBELS
    return min(MOST_DECIBELS, 10 * math.log10(_LEVELS**2 / error))


def ssim(one: Picture, other: Picture) -> float:
    """Give the structural similarity (Wang et al., 2004), up to 1 for the same picture."""
    x, y = _planes(one), _planes(other)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((luminance * structure).mean())


def _planes(picture: Picture) -> Tensor:
    """Give each colour channel as a picture of its own: (3, 1, height, width)."""
    return torch.tensor(picture, dtype=torch.float64).permute(2, 0, 1)[:, None]


def _blur(planes: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    across = F.conv2d(planes, weights.view(1, 1, 1, -1))
    return F.conv2d(across, weights.view(1, 1, -1, 1))
