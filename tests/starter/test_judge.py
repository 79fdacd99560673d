"""The judge: right about what is truly drawn, and not fooled by what is wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ditcast_runtime.starter import scenes
from ditcast_runtime.starter.judge import held_out_task, judge_truth
from ditcast_runtime.starter.scenes import Color, Relation, Scene, Shape, Size, Thing
from ditcast_runtime.starter.seeing import compare, see

SCENE = Scene(
    (Thing(Shape.STAR, Color.BLUE, Size.SMALL), Thing(Shape.RING, Color.RED, Size.LARGE)),
    Relation.LEFT,
    Color.WHITE,
)


@pytest.mark.parametrize(("width", "height"), [*scenes.TRAINED_SIZES[:5], (144, 96)])
def test_the_judge_is_right_about_drawn_truth(width: int, height: int) -> None:
    """At every size that is cheap to judge, 98 of 100 pictures are right in all respects."""
    judgement = judge_truth(held_out_task(50), width, height)
    assert min(*judgement.aspects.values(), judgement.all_right) >= 0.98


def _with(**changes: object) -> Scene:
    things = [dataclasses.replace(SCENE.things[0], **changes), SCENE.things[1]]  # type: ignore[arg-type]
    return dataclasses.replace(SCENE, things=tuple(things))


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        (_with(color=Color.GREEN), "color"),
        (_with(shape=Shape.CROSS), "shape"),
        (_with(size=Size.LARGE), "size"),
        (dataclasses.replace(SCENE, background=Color.YELLOW), "background"),
        (dataclasses.replace(SCENE, relation=Relation.RIGHT), "relation"),
        (dataclasses.replace(SCENE, relation=Relation.ABOVE), "relation"),
    ],
)
def test_the_judge_names_the_one_thing_that_is_wrong(drawn: Scene, wrong: str) -> None:
    """One aspect off is one aspect wrong, and all others right."""
    verdict = compare(SCENE, see(scenes.draw(drawn, 128, 128, None)))
    found = dataclasses.asdict(verdict)
    assert [name for name, right in found.items() if not right] == [wrong]


def test_nothing_is_right_about_missing_things() -> None:
    """A picture with one of two things shows neither colours nor shapes as asked."""
    alone = Scene(SCENE.things[:1], None, SCENE.background)
    verdict = compare(SCENE, see(scenes.draw(alone, 128, 128, None)))
    assert dataclasses.astuple(verdict) == (True, False, False, False, False, False)


def test_a_blob_has_no_shape() -> None:
    """What is nearest to a star is still no star if nobody would call it one."""
    picture = scenes.draw(Scene(SCENE.things[:1], None, Color.WHITE), 128, 128, None)
    blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(12)).resize((128, 128))
    darker = np.where(np.asarray(blurred) < 200, np.array(scenes.PALETTE[Color.BLUE]), 250)
    assert all(found.shape is not Shape.STAR for found in see(darker.astype(np.uint8)).things)
