"""How a pipeline's latents lie, found out by comparing them with what its decoder is given.

Between the last step and the decoder, pipelines move values and scale them, each in its own way.
Which value goes where, and by how much it is scaled, shows in one run: each value that the decoder
is given follows exactly one of the latents' over all cells. A cell is what one token stands for,
or one place of latents that have not been packed into tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

_SAME = 0.99
"""Correlation from which on a value counts as the same one, moved and scaled; number types of half
precision leave it at 0.9999."""
_PATCHES = (1, 2, 4)
"""Sides of a cell in the decoder's grid."""
_LEAST_CELLS = 4
_TOKENS = 3
"""Axes of latents in tokens: picture, token, value."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the decoder's values come from the latents."""

    axis: int | None
    """The axis of the values of a cell, from 1; None: the latents are tokens."""
    pixels: int
    """Side of a cell in the output."""
    patch: int
    """Side of a cell in the decoder's grid."""
    frames: int
    """Frames of a cell in the decoder's grid."""
    source: torch.Tensor
    """For each of the decoder's values in a cell: which of the latents' it is."""
    scale: torch.Tensor
    shift: torch.Tensor

    def decoder_values(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor | None:
        """Give (pictures, channels, rows, columns) of the middle frame; None: another layout.

        Pipelines that render at a size of their own choice, and make the output of the middle of
        that, are seen to by what their latents measure. Of tokens nobody can tell.

        Args:
            latents: As the pipeline has them.
            width: Of the output, in pixels.
            height: Of the output, in pixels.
        """
        rows, columns = height // self.pixels, width // self.pixels
        cells = cells_of(latents, self.axis, rows, columns)
        if cells is None or cells.shape[-1] != len(self.source):
            return None
        middle = cells[:, cells.shape[1] // 2].float()
        values = middle[..., self.source] * self.scale + self.shift
        values = values.unflatten(-1, (self.frames, -1, self.patch, self.patch))
        # From pictures, rows, columns, channels, and both sides of the patch.
        one = values[:, :, :, self.frames // 2].permute(0, 3, 1, 4, 2, 5)
        merged: torch.Tensor = one.flatten(4, 5).flatten(2, 3)
        return merged if middle.shape[1:3] == (rows, columns) else _middle(merged, width, height)


def _middle(values: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Give the largest part in the middle of a grid that has the shape of the output."""
    rows, columns = values.shape[2:]
    high = max(1, min(rows, round(columns * height / width)))
    wide = max(1, min(columns, round(rows * width / height)))
    top, left = (rows - high) // 2, (columns - wide) // 2
    return values[:, :, top : top + high, left : left + wide]


def cells_of(
    latents: torch.Tensor, axis: int | None, rows: int, columns: int
) -> torch.Tensor | None:
    """Give (pictures, frames, rows, columns, values); None: they do not lie so.

    The rows and columns are those that are given only where the latents are tokens.
    """
    if axis is None:
        if latents.ndim != _TOKENS or latents.shape[1] % (rows * columns):
            return None
        tokens: torch.Tensor = latents.unflatten(1, (-1, rows, columns))
        return tokens
    if axis >= latents.ndim or latents.ndim <= _TOKENS:
        return None
    cells = latents.movedim(axis, -1)
    cells = cells.unsqueeze(1) if cells.ndim == _TOKENS + 1 else cells
    return cells if cells.ndim == _TOKENS + 2 else None


def find_layout(latents: torch.Tensor, decoded: torch.Tensor, height: int) -> Layout | None:
    """Compare the final latents of a run with what its decoder was given; None: no such relation.

    Args:
        latents: What the scheduler made at the last step.
        decoded: What the decoder was given: (pictures, channels, [frames,] rows, columns).
        height: Of the output, in pixels.
    """
    if decoded.ndim not in {4, 5} or latents.ndim not in {3, 4, 5}:
        return None
    grid = decoded[:1].unsqueeze(2) if decoded.ndim == 4 else decoded[:1]  # noqa: PLR2004
    axes = [None] if latents.ndim == _TOKENS else [*range(1, latents.ndim)]
    for axis, patch in itertools.product(axes, _PATCHES):
        rows, columns = grid.shape[3] // patch, grid.shape[4] // patch
        if grid.shape[3] % patch or grid.shape[4] % patch or height % rows:
            continue
        cells = cells_of(latents[:1], axis, rows, columns)
        if cells is None or cells.shape[2:4] != (rows, columns) or grid.shape[2] % cells.shape[1]:
            continue
        frames = grid.shape[2] // cells.shape[1]
        found = _match(cells, _folded(grid, frames, patch))
        if found is not None:
            return Layout(axis, height // rows, patch, frames, *found)
    return None


def _folded(grid: torch.Tensor, frames: int, patch: int) -> torch.Tensor:
    """Give what lies in each cell: (cells, values), values by frame, channel, row, column."""
    folded = grid[0].unflatten(1, (-1, frames))
    folded = folded.unflatten(3, (-1, patch)).unflatten(5, (-1, patch))
    # From channels, cells' frames, frames in one, rows, patch, columns, patch.
    values: torch.Tensor = folded.permute(1, 3, 5, 2, 0, 4, 6).flatten(3).flatten(0, 2)
    return values


def _match(
    cells: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Find the source of each value, and how it is scaled and shifted."""
    sources = cells[0].flatten(0, 2).double()
    values = values.double()
    if sources.shape != values.shape or len(values) < _LEAST_CELLS:
        return None
    sources_mean, values_mean = sources.mean(0), values.mean(0)
    sources, values = sources - sources_mean, values - values_mean
    norms = sources.norm(dim=0)
    products = values.T @ sources
    likeness = products / values.norm(dim=0)[:, None] / norms
    best, source = likeness.abs().max(dim=1)
    if not bool((best > _SAME).all()) or len(source.unique()) != len(source):
        return None
    scale = products.gather(1, source[:, None])[:, 0] / norms[source] ** 2
    shift = values_mean - sources_mean[source] * scale
    return source, scale.float(), shift.float()
