"""The world of the embedded model: scenes, their wordings, their pictures, and what is held out."""

from __future__ import annotations

import numpy as np
import pytest

from ditcast_runtime.starter import scenes
from ditcast_runtime.starter.scenes import Color, Relation, Scene, Shape, Size, Thing

STAR = Thing(Shape.STAR, Color.BLUE, Size.SMALL)
RING = Thing(Shape.RING, Color.RED, Size.LARGE)


def test_the_world_is_as_large_as_promised() -> None:
    """At least six shapes, eight colours, two sizes and four relations."""
    assert (len(Shape), len(Color), len(Size), len(Relation)) >= (6, 8, 2, 4)


def test_half_of_the_scenes_have_two_things() -> None:
    """One thing and two things are about as frequent."""
    rng = np.random.default_rng(0)
    numbers = [len(scenes.sample(rng).things) for _ in range(1000)]
    assert 0.45 < np.mean(np.array(numbers) == 2) < 0.55


def test_things_differ_from_their_background() -> None:
    """What has the background's colour could not be seen."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = scenes.sample(rng)
        assert scene.background not in {thing.color for thing in scene.things}


def test_a_scene_is_held_out_in_every_wording() -> None:
    """The same picture said from the other end is the same scene."""
    rng = np.random.default_rng(0)
    opposite = {Relation.LEFT: Relation.RIGHT, Relation.ABOVE: Relation.BELOW}
    for relation, other in opposite.items():
        for background in (Color.WHITE, Color.BLACK, Color.GREEN):
            one = Scene((STAR, RING), relation, background)
            same = Scene((RING, STAR), other, background)
            assert scenes.held_out(one) == scenes.held_out(same)
    assert not any(scenes.held_out(scenes.sample_trained(rng)) for _ in range(300))
    assert all(scenes.held_out(scenes.sample_held_out(rng)) for _ in range(50))


def test_a_tenth_is_held_out() -> None:
    """Enough to judge by, and not so much that training misses it."""
    rng = np.random.default_rng(0)
    share = np.mean([scenes.held_out(scenes.sample(rng)) for _ in range(5000)])
    assert 0.08 < share < 0.12


def test_captions_say_colours_shapes_and_relation() -> None:
    """Whatever else is left unsaid, these are always said."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = scenes.sample(rng)
        text = scenes.caption(scene, rng).lower()
        for thing in scene.things:
            assert f"{thing.color} {thing.shape}" in text
        assert scene.relation is None or scene.relation in text


@pytest.mark.parametrize(("width", "height"), scenes.TRAINED_SIZES)
def test_pictures_have_the_size_asked_for(width: int, height: int) -> None:
    """Width and height are not mixed up, and each thing is inside."""
    scene = Scene((STAR, RING), Relation.LEFT, Color.WHITE)
    picture = scenes.draw(scene, width, height, np.random.default_rng(0))
    assert picture.shape == (height, width, 3)
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge == scenes.PALETTE[Color.WHITE]).all()
