"""Reads a picture of the small world back: which things are where, and whether that was asked for.

No model is involved. Each pixel takes the nearest colour of the palette, connected areas of one
colour are things, and a thing's shape is the one whose outline covers it best.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ditcast_runtime.starter import scenes
from ditcast_runtime.starter.scenes import Color, Picture, Relation, Scene, Shape, Size, Thing

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

SMALLEST_AREA = 0.0025
"""Areas below this share of the shorter side's square are specks, no things."""
WORST_OVERLAP = 0.7
"""Intersection over union with the best shape, below which a thing has none that one could name."""
_OUTLINE = 40  # pixels of the square in which outlines are compared
_BORDER = 3  # pixels at the picture's edge that show the background


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """One thing in a picture."""

    color: Color
    shape: Shape | None
    """None: nothing that one could name."""
    radius: float
    """As a share of the shorter side, if it is what `shape` says."""
    x: float
    """Of the centre, in pixels."""
    y: float


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """All that is in a picture."""

    background: Color
    things: tuple[Found, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What of a scene a picture shows rightly; each is about all things together.

    With too few or too many things, nothing that is about things counts as right.
    """

    background: bool
    number: bool
    color: bool
    relation: bool
    """True for a single thing."""
    shape: bool
    size: bool

    @property
    def all_right(self) -> bool:
        """Whether nothing is wrong."""
        return all(dataclasses.astuple(self))


def see(picture: Picture) -> Seen:
    """Find the background and the things in a picture."""
    nearest = _nearest_colors(picture)
    edge = np.ones(nearest.shape, dtype=bool)
    edge[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    ground = int(np.bincount(nearest[edge]).argmax())
    colors = tuple(Color)
    things = [
        _find(area, color)
        for index, color in enumerate(colors)
        if index != ground
        for area in _areas(nearest == index)
    ]
    return Seen(colors[ground], tuple(things))


def compare(scene: Scene, seen: Seen) -> Verdict:
    """Say what of a scene is to be seen."""
    background = seen.background == scene.background
    if len(seen.things) != len(scene.things):
        return Verdict(background, *([False] * 5))
    return max(
        (_compare_in_order(scene, order, background=background) for order in _orders(seen)),
        key=lambda verdict: sum(dataclasses.astuple(verdict)),
    )


def confusions(scene: Scene, seen: Seen) -> list[tuple[Shape, Shape | None]]:
    """Pair each thing's shape with the one seen in its place; nothing where the number is wrong."""
    if len(seen.things) != len(scene.things):
        return []
    best = max(
        _orders(seen),
        key=lambda order: sum(
            dataclasses.astuple(_compare_in_order(scene, order, background=True))
        ),
    )
    return [(thing.shape, found.shape) for thing, found in zip(scene.things, best, strict=True)]


def _orders(seen: Seen) -> list[tuple[Found, ...]]:
    return list(itertools.permutations(seen.things))


def _compare_in_order(scene: Scene, order: tuple[Found, ...], *, background: bool) -> Verdict:
    pairs = list(zip(scene.things, order, strict=True))
    return Verdict(
        background=background,
        number=True,
        color=all(thing.color == found.color for thing, found in pairs),
        relation=scene.relation is None or scene.relation == _relation(*order),
        shape=all(thing.shape == found.shape for thing, found in pairs),
        size=all(thing.size == _size(found, len(pairs)) for thing, found in pairs),
    )


def _relation(first: Found, second: Found) -> Relation:
    if abs(first.x - second.x) > abs(first.y - second.y):
        return Relation.LEFT if first.x < second.x else Relation.RIGHT
    return Relation.ABOVE if first.y < second.y else Relation.BELOW


def _size(found: Found, number: int) -> Size:
    radii = scenes.RADII[number]
    middle = (radii[Size.SMALL] + radii[Size.LARGE]) / 2
    return Size.SMALL if found.radius < middle else Size.LARGE


def _nearest_colors(picture: Picture) -> Numbers:
    palette = np.array([scenes.PALETTE[color] for color in Color], dtype=np.int32)
    distances = ((picture[:, :, None].astype(np.int32) - palette) ** 2).sum(-1)
    nearest: Numbers = distances.argmin(-1)
    return nearest


def _areas(mask: Mask) -> list[Mask]:
    """Split a mask into connected areas, without specks and without the blended rims of others."""
    smallest = SMALLEST_AREA * min(mask.shape) ** 2
    core = _erode(mask)
    labels = _label(core)
    numbers, counts = np.unique(labels[core], return_counts=True)
    grown = [_dilate(labels == number) & mask for number in numbers[counts >= smallest]]
    return [area for area in grown if area.sum() >= smallest]


def _shifts(plane: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Give a plane moved by one pixel in each of four directions, with zeros coming in."""
    padded = np.pad(plane, 1)
    return [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]


def _erode(mask: Mask) -> Mask:
    # A thing may touch the picture's edge: what is outside must not eat into it.
    return ~_dilate(~mask)


def _dilate(mask: Mask) -> Mask:
    grown: Mask = np.logical_or.reduce([mask, *_shifts(mask)])
    return grown


def _label(mask: Mask) -> Numbers:
    """Give each pixel of the mask the largest number in its connected area, and 0 to the rest."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, np.maximum.reduce([labels, *_shifts(labels)]), 0)
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def _find(area: Mask, color: Color) -> Found:
    rows, columns = np.nonzero(area)
    outline = _outline(area)
    overlaps = {shape: _overlap(outline, _template(shape)[0]) for shape in Shape}
    shape = max(overlaps, key=overlaps.__getitem__)
    return Found(
        color=color,
        shape=shape if overlaps[shape] >= WORST_OVERLAP else None,
        radius=float(np.sqrt(area.sum() / _template(shape)[1]) / min(area.shape)),
        x=float(columns.mean()),
        y=float(rows.mean()),
    )


def _overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def _outline(area: Mask) -> Mask:
    """Cut an area out and stretch it to a square of a fixed size."""
    rows, columns = np.nonzero(area)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    stretched = Image.fromarray(area).convert("L").resize((_OUTLINE, _OUTLINE), box=box)
    return np.asarray(stretched) > 127  # noqa: PLR2004 - half of a byte


@functools.cache
def _template(shape: Shape) -> tuple[Mask, float]:
    """Give a shape's outline, and its area if its radius were 1."""
    side = 256
    thing = Thing(shape, Color.BLACK, Size.LARGE)
    picture = scenes.draw(Scene((thing,), None, Color.WHITE), side, side, None)
    area = _areas(_nearest_colors(picture) == tuple(Color).index(Color.BLACK))[0]
    return _outline(area), float(area.sum() / (side * scenes.RADII[1][Size.LARGE]) ** 2)
