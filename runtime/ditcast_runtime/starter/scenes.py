"""The world of the embedded model: what its captions can say, and how that is drawn.

One or two flat shapes on a flat background. A scene is what a caption means; the same scene has
many wordings and, since places and sizes vary a little, many pictures. A tenth of all scenes is
never trained on, in whatever wording.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Picture = npt.NDArray[np.uint8]
"""Shape (height, width, 3), RGB."""

Point = tuple[float, float]
Option = TypeVar("Option")


class Shape(enum.StrEnum):
    """What a thing is."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    STAR = "star"
    RING = "ring"
    CROSS = "cross"


class Color(enum.StrEnum):
    """What colour a thing or the background has."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    ORANGE = "orange"
    PURPLE = "purple"
    WHITE = "white"
    BLACK = "black"


class Size(enum.StrEnum):
    """How large a thing is; one whose size is not said is large."""

    SMALL = "small"
    LARGE = "large"


class Relation(enum.StrEnum):
    """Where the first thing of a caption is, seen from the second."""

    LEFT = "left of"
    RIGHT = "right of"
    ABOVE = "above"
    BELOW = "below"


PALETTE: dict[Color, tuple[int, int, int]] = {
    Color.RED: (222, 40, 40),
    Color.GREEN: (30, 160, 70),
    Color.BLUE: (40, 80, 220),
    Color.YELLOW: (245, 210, 50),
    Color.ORANGE: (245, 135, 25),
    Color.PURPLE: (140, 60, 180),
    Color.WHITE: (250, 250, 250),
    Color.BLACK: (20, 20, 20),
}

RADII: dict[int, dict[Size, float]] = {
    1: {Size.SMALL: 0.18, Size.LARGE: 0.32},
    2: {Size.SMALL: 0.15, Size.LARGE: 0.20},
}
"""Radius by number of things and size, as a share of the shorter side. The smallest, 38 pixels
across at 128x128, is more than two tokens of the transformer wide: smaller ones are learned much
more slowly."""

TRAINED_SIZES: tuple[tuple[int, int], ...] = (
    (128, 128),
    (96, 96),
    (64, 64),
    (192, 128),
    (128, 192),
    (160, 160),
    (256, 256),
)
"""(width, height) of the pictures that the transformer learns from, in pixels."""

_HELD_OUT_SHARE = 0.1
_SUPERSAMPLING = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Thing:
    """One shape."""

    shape: Shape
    color: Color
    size: Size


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """What a caption means."""

    things: tuple[Thing, ...]
    """One, or two, in the order of the caption."""
    relation: Relation | None
    """Of the first to the second; None where there is only one."""
    background: Color

    def arranged(self) -> Scene:
        """Give the same picture's scene with the left or upper thing first."""
        match self.relation:
            case Relation.RIGHT:
                return Scene(self.things[::-1], Relation.LEFT, self.background)
            case Relation.BELOW:
                return Scene(self.things[::-1], Relation.ABOVE, self.background)
            case _:
                return self


def sample(rng: np.random.Generator) -> Scene:
    """Draw a scene at random: half of them have two things, a quarter are on white."""
    background = Color.WHITE if _happens(rng, 0.25) else _choose(rng, tuple(Color))
    first = _sample_thing(rng, background)
    if _happens(rng, 0.5):
        return Scene((first,), None, background)
    relation = _choose(rng, tuple(Relation))
    return Scene((first, _sample_thing(rng, background)), relation, background)


def sample_held_out(rng: np.random.Generator) -> Scene:
    """Draw a scene that training never sees."""
    while not held_out(scene := sample(rng)):
        pass
    return scene


def sample_trained(rng: np.random.Generator) -> Scene:
    """Draw a scene that training may see."""
    while held_out(scene := sample(rng)):
        pass
    return scene


def held_out(scene: Scene) -> bool:
    """Say whether a scene is of the tenth that is kept out of training, in every wording."""
    text = caption_plainly(scene.arranged())
    return hashlib.sha256(text.encode()).digest()[0] < 256 * _HELD_OUT_SHARE


def caption_plainly(scene: Scene) -> str:
    """Say all of a scene: one scene, one text."""
    parts = [f"a {thing.size} {thing.color} {thing.shape}" for thing in scene.things]
    between = f" {scene.relation} " if scene.relation else ""
    ground = scene.background
    return f"{between.join(parts)} on {_article(ground)} {ground} background"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Say a scene as a user might: with parts left unsaid, synonyms, capitals and full stops."""
    parts = [_thing_in_words(thing, rng) for thing in scene.things]
    between = ""
    if scene.relation is not None:
        sideways = scene.relation in {Relation.LEFT, Relation.RIGHT}
        long = sideways and _happens(rng, 0.1)
        between = f" to the {scene.relation} " if long else f" {scene.relation} "
    text = between.join(parts)
    if scene.background != Color.WHITE or _happens(rng, 0.2):
        text += f" on {_article(scene.background)} {scene.background} background"
    if _happens(rng, 0.08):
        text = text[0].upper() + text[1:]
    return text + "." if _happens(rng, 0.08) else text


def draw(scene: Scene, width: int, height: int, rng: np.random.Generator | None) -> Picture:
    """Draw a scene; `rng` decides on small differences in place and size, None draws none."""
    scale = _SUPERSAMPLING
    image = Image.new("RGB", (width * scale, height * scale), PALETTE[scene.background])
    pencil = ImageDraw.Draw(image)
    places = _places(scene.relation, rng)
    for thing, (x, y) in zip(scene.things, places, strict=True):
        radius = RADII[len(scene.things)][thing.size] * (1 + _jitter(rng, 0.03))
        center = (x * width * scale, y * height * scale)
        ground = PALETTE[scene.background]
        _draw_thing(pencil, thing, center, radius * min(width, height) * scale, ground)
    return np.asarray(image.reduce(scale))


def _sample_thing(rng: np.random.Generator, background: Color) -> Thing:
    colors = tuple(color for color in Color if color != background)
    size = _choose(rng, tuple(Size))
    return Thing(_choose(rng, tuple(Shape)), _choose(rng, colors), size)


def _happens(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _choose(rng: np.random.Generator, options: tuple[Option, ...]) -> Option:
    return options[int(rng.integers(len(options)))]


def _thing_in_words(thing: Thing, rng: np.random.Generator) -> str:
    words: list[str] = [thing.color, thing.shape]
    if thing.size == Size.SMALL or _happens(rng, 0.6):
        big = thing.size == Size.LARGE and _happens(rng, 0.1)
        words.insert(0, "big" if big else thing.size)
    if not _happens(rng, 0.08):
        words.insert(0, _article(words[0]))
    return " ".join(words)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _places(relation: Relation | None, rng: np.random.Generator | None) -> list[Point]:
    """Give the centre of each thing, as shares of width and height."""
    if relation is None:
        return [(0.5 + _jitter(rng, 0.03), 0.5 + _jitter(rng, 0.03))]
    along = [0.25 + _jitter(rng, 0.02), 0.75 + _jitter(rng, 0.02)]
    across = [0.5 + _jitter(rng, 0.03), 0.5 + _jitter(rng, 0.03)]
    if relation in {Relation.RIGHT, Relation.BELOW}:
        along.reverse()
    if relation in {Relation.LEFT, Relation.RIGHT}:
        return list(zip(along, across, strict=True))
    return list(zip(across, along, strict=True))


def _jitter(rng: np.random.Generator | None, most: float) -> float:
    return 0.0 if rng is None else float(rng.uniform(-most, most))


def _draw_thing(
    pencil: ImageDraw.ImageDraw,
    thing: Thing,
    center: Point,
    radius: float,
    ground: tuple[int, int, int],
) -> None:
    color = PALETTE[thing.color]
    match thing.shape:
        case Shape.CIRCLE:
            pencil.ellipse(_box(center, radius), fill=color)
        case Shape.RING:
            pencil.ellipse(_box(center, radius), fill=color)
            pencil.ellipse(_box(center, 0.5 * radius), fill=ground)
        case Shape.SQUARE:
            pencil.rectangle(_box(center, 0.9 * radius), fill=color)
        case Shape.CROSS:
            pencil.rectangle(_box(center, radius, 0.36 * radius), fill=color)
            pencil.rectangle(_box(center, 0.36 * radius, radius), fill=color)
        case Shape.TRIANGLE:
            x, y = center
            low = y + 0.85 * radius
            corners = [(x, y - 0.85 * radius), (x - radius, low), (x + radius, low)]
            pencil.polygon(corners, fill=color)
        case Shape.STAR:
            pencil.polygon(_star(center, 1.08 * radius), fill=color)


def _box(
    center: Point, half_width: float, half_height: float | None = None
) -> tuple[float, float, float, float]:
    half_height = half_width if half_height is None else half_height
    x, y = center
    return x - half_width, y - half_height, x + half_width, y + half_height


def _star(center: Point, radius: float) -> list[Point]:
    """Give the ten corners of a star of five points, the first of them on top."""
    corners = []
    for index in range(10):
        reach = radius if index % 2 == 0 else 0.48 * radius
        angle = math.pi * index / 5
        corners.append((center[0] + reach * math.sin(angle), center[1] - reach * math.cos(angle)))
    return corners
