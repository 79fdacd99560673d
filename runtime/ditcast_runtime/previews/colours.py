"""What colours latents stand for: a small linear map, fitted to the pipeline's own VAE.

Fitted by least squares to a chart of shapes and shades that the VAE encodes once, at the start.
From the values of a cell and of those around it the map gives a block of pixels, which is more than
the mean colour of a cell and still one small convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

CELLS = 20
"""Side of the chart in cells of the decoder's grid: more cells than a map has weights a colour."""
_BLOCK = 4
"""Side of the block of pixels that the map gives for a cell, unless the VAE has fewer."""
_NEIGHBOURS = 3
_RIDGE = 1e-4
"""Share of the mean square of the values: keeps those that always go together from weights that
cancel each other out on the chart and nowhere else."""
_KNOWN = 0.5
"""Share of the colours' variance, on cells that were not fitted, from which on a map is of use."""


@dataclass(frozen=True, slots=True)
class ColourMap:
    """From the decoder's values to colours."""

    weight: torch.Tensor
    """(3, block, block, channels, kernel, kernel)."""
    bias: torch.Tensor
    """(3, block, block)."""

    def colours(self, values: torch.Tensor, longest: int) -> torch.Tensor:
        """Give (pictures, 3, height, width) from 0 to 1, of `longest` pixels a side or less.

        Less where the map's blocks do not give as many.
        """
        block = 1
        while block < self.weight.shape[1] and max(values.shape[2:]) * block < longest:
            block *= 2
        weight = _coarser(self.weight, block).to(values.device)
        bias = _coarser(self.bias, block).to(values.device)
        reach = weight.shape[-1] // 2
        padded = functional.pad(values, (reach,) * 4, mode="replicate")
        found = functional.conv2d(padded, weight.flatten(0, 2), bias.flatten())
        return shrunk(functional.pixel_shuffle(found, block), longest).clamp(0, 1)


def shrunk(picture: torch.Tensor, longest: int) -> torch.Tensor:
    """Give the picture with no side over `longest`, each pixel the mean of its area."""
    height, width = picture.shape[2:]
    share = longest / max(height, width)
    if share >= 1:
        return picture
    size = (max(1, round(height * share)), max(1, round(width * share)))
    return functional.interpolate(picture, size, mode="area")


def chart(side: int) -> torch.Tensor:
    """Draw (1, 3, side, side) from -1 to 1: shades, rectangles and discs, always the same."""
    generator = torch.Generator().manual_seed(0)
    shades = torch.zeros(1, 3, side, side)
    for grid, part in ((3, 0.6), (6, 0.4)):
        noise = torch.rand(1, 3, grid, grid, generator=generator)
        shades += part * functional.interpolate(noise, (side, side), mode="bicubic")
    lines = torch.arange(side)
    for _ in range(4 * CELLS):
        radius, row, column, round_one = torch.rand(4, generator=generator).tolist()
        reach = side * (0.03 + 0.1 * radius)
        down, across = (lines - row * side)[:, None].abs(), (lines - column * side)[None].abs()
        inside = (down**2 + across**2).sqrt() if round_one < 0.5 else torch.maximum(down, across)  # noqa: PLR2004
        colour = torch.rand(1, 3, 1, 1, generator=generator)
        shades = torch.where(inside < reach, colour, shades)
    return shades.clamp(0, 1) * 2 - 1


def fit(values: torch.Tensor, picture: torch.Tensor) -> ColourMap | None:
    """Fit the map to one picture; None: colours do not follow from the values in this way.

    Args:
        values: What the decoder was given: (1, channels, rows, columns).
        picture: What they stand for, from 0 to 1: (1, 3, height, width).
    """
    rows = values.shape[2]
    block = next(each for each in (_BLOCK, 2, 1) if rows * each <= picture.shape[2])
    size = (rows * block, values.shape[3] * block)
    targets = functional.pixel_unshuffle(functional.adaptive_avg_pool2d(picture, size), block)
    targets = targets[0].flatten(1).T.double()
    # Fewer weights than cells, or there is nothing to average over.
    wide = values.shape[1] * _NEIGHBOURS**2 * 3 < len(targets) * 2
    kernel = _NEIGHBOURS if wide else 1
    padded = functional.pad(values, (kernel // 2,) * 4, mode="replicate")
    features = functional.unfold(padded, kernel)[0].T.double()
    features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    if not bool(torch.isfinite(features).all() and torch.isfinite(targets).all()):
        return None
    if _explained(features, targets) < _KNOWN:
        return None
    weights = _solved(features, targets).T.float()
    shape = (3, block, block)
    return ColourMap(
        weight=weights[:, :-1].reshape(*shape, values.shape[1], kernel, kernel),
        bias=weights[:, -1].reshape(shape),
    )


def encode_chart(vae: Any, axes: int, side: int, device: torch.device) -> ColourMap | None:
    """Have the VAE encode the chart, and fit the map to that; None: there is no such map.

    Args:
        vae: Encodes.
        axes: Of the values that the decoder is given; 5: with frames.
        side: Of the chart in pixels.
        device: Where the VAE takes its input.
    """
    drawn = chart(side)
    given = drawn.to(device, vae.dtype)
    with torch.no_grad():
        values = _latents_of(vae.encode(given if axes == 4 else given.unsqueeze(2)))  # noqa: PLR2004
    return fit(first_frame(values).float().cpu(), drawn / 2 + 0.5)


def first_frame(values: torch.Tensor) -> torch.Tensor:
    """Give (pictures, channels, rows, columns) of the first frame, where there are frames."""
    return values if values.ndim == 4 else values[:, :, 0]  # noqa: PLR2004


def _latents_of(encoded: Any) -> torch.Tensor:
    """Read what an encoder gives, under any of the names that it has."""
    distribution = getattr(encoded, "latent_dist", None)
    if distribution is not None:
        values: torch.Tensor = distribution.mode()
        return values
    named = (getattr(encoded, name, None) for name in ("latents", "latent"))
    found: torch.Tensor = next(values for values in named if values is not None)
    return found


def _coarser(values: torch.Tensor, block: int) -> torch.Tensor:
    """Average a map's blocks down to smaller ones: it is linear, so its weights can be averaged."""
    by = values.shape[1] // block
    coarser: torch.Tensor = values.unflatten(2, (block, by)).unflatten(1, (block, by)).mean((2, 4))
    return coarser


def _solved(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    squares = features.T @ features
    squares += torch.eye(len(squares)) * _RIDGE * squares.diagonal().mean()
    solved: torch.Tensor = torch.linalg.solve(squares, features.T @ targets)
    return solved


def _explained(features: torch.Tensor, targets: torch.Tensor) -> float:
    """Give the share of the variance that a fit to most cells explains in the others."""
    tested = torch.arange(len(targets)) % 4 == 0
    solved = _solved(features[~tested], targets[~tested])
    wrong = targets[tested] - features[tested] @ solved
    spread = targets[tested] - targets[tested].mean(0)
    return float(1 - wrong.square().sum() / spread.square().sum().clamp_min(1e-12))
