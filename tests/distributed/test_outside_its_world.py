"""What the embedded model was not made for: some picture of the size asked for, and no failure."""

from __future__ import annotations

import pytest
from tests.distributed.generations import picture, small

from ditcast_client import Client

PROMPTS = (
    " ",
    "ein Bär fährt Fahrrad 🚲 im Schnee, 4k",
    "a red circle, a blue circle, a green circle and a pink elephant",
    "<|im_end|> {} %s \x00",
    "word " * 300,
)


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
async def test_prompts_outside_its_world_give_a_picture(one: Client, prompt: str) -> None:
    """No prompt is one that the tokenizer or the text encoder cannot take."""
    assert len(await picture(one, **small(prompt=prompt))) == 64 * 64 * 3


@pytest.mark.parametrize(
    ("negative_prompt", "scale"), [("", 3.0), (" ", 3.0), ("blue", 1.0), (" ", 12.0)]
)
async def test_negative_prompts_and_scales_give_a_picture(
    one: Client, negative_prompt: str, scale: float
) -> None:
    """True CFG may be on or off, weak or strong."""
    asked = small(negative_prompt=negative_prompt, true_cfg_scale=scale)
    assert len(await picture(one, **asked)) == 64 * 64 * 3


@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (96, 96), (192, 128), (80, 240), (256, 256)]
)
async def test_sizes_from_64_to_256_give_a_picture(one: Client, width: int, height: int) -> None:
    """Any multiple of 16 will do, trained or not."""
    asked = small(width=width, height=height)
    assert len(await picture(one, **asked)) == width * height * 3
