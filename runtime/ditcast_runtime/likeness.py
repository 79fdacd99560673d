"""How much one picture is like another: PSNR and SSIM, both from their definitions.

The embedded model's figures, `Tune` and shadow comparisons all mean these two. No torch: the
service compares too, and imports this where it does: numpy would be a sixth of its own imports.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import numpy.typing as npt

from ditcast_runtime.events import LEAST_SIDE, MOST_DECIBELS

Picture = npt.NDArray[np.uint8]
"""Rows from the top, pixels, and red, green and blue: (height, width, 3)."""

_LEVELS = 255.0
_SIGMA = 1.5
_BAND_ROWS = 256
"""Rows that are compared at once: a whole large picture in doubles would fill the memory."""

_Plane = npt.NDArray[np.float64]


def psnr(one: Picture, other: Picture) -> float:
    """Give the peak signal-to-noise ratio in dB, at most `MOST_DECIBELS`."""
    squares = 0.0
    for top in range(0, len(one), _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        squares += float(np.square(one[rows].astype(np.float64) - other[rows]).sum())
    if squares == 0:
        return MOST_DECIBELS
    return min(MOST_DECIBELS, 10 * math.log10(_LEVELS**2 * one.size / squares))


def ssim(one: Picture, other: Picture) -> float:
    """Give the structural similarity (Wang et al., 2004), up to 1 for the same picture.

    Of each colour channel, by a Gaussian window of 11 pixels and sigma 1.5, wherever that lies
    within the picture; the mean of all.

    Raises:
        ValueError: a side is smaller than the window.
    """
    if min(one.shape[:2]) < LEAST_SIDE:
        raise ValueError(f"a side of {min(one.shape[:2])} pixels is under {LEAST_SIDE}")
    rows = len(one) - LEAST_SIDE + 1
    total = 0.0
    for top in range(0, rows, _BAND_ROWS):
        # Bands share the rows that a window reaches beyond its own.
        bottom = min(top + _BAND_ROWS, rows) + LEAST_SIDE - 1
        total += float(_similarities(one[top:bottom], other[top:bottom]).sum())
    windows: int = rows * (one.shape[1] - LEAST_SIDE + 1) * one.shape[2]
    return total / windows


def compare(one: bytes, other: bytes, width: int, height: int) -> tuple[float, float]:
    """Give PSNR and SSIM of two outputs of one size, raw; of videos over all their frames."""
    shape = (-1, height, width, 3)
    frames = np.frombuffer(one, np.uint8).reshape(shape)
    others = np.frombuffer(other, np.uint8).reshape(shape)
    similarity = statistics.fmean(ssim(*pair) for pair in zip(frames, others, strict=True))
    # As one tall picture: the mean of the frames' errors, not of their decibels.
    tall = (-1, width, 3)
    return psnr(frames.reshape(tall), others.reshape(tall)), similarity


def _similarities(one: Picture, other: Picture) -> _Plane:
    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    product: _Plane = luminance * structure
    return product


def _blur(values: _Plane) -> _Plane:
    """Weigh along columns, then along rows, where the whole window fits."""
    offsets = np.arange(LEAST_SIDE) - LEAST_SIDE // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    pairs = tuple(enumerate(weights / weights.sum()))
    for _ in range(2):
        length = len(values) - LEAST_SIDE + 1
        blurred = sum(weight * values[start : start + length] for start, weight in pairs)
        # The other axis comes first now; after the second time all are where they were.
        values = np.swapaxes(blurred, 0, 1)
    return values
