"""The same seed gives the same picture: on one rank and on two, again and again, after cancels."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from tests.distributed import shipped
from tests.distributed.generations import (
    FOR_EVER,
    MASKED,
    OFF,
    fields,
    levels_apart,
    picture,
    small,
    watch_until,
)
from tests.distributed.servers import serve

from ditcast.v1.acceleration_pb2 import CacheConfig
from ditcast_client import Cancelled, Client

LAST = 8
PROMPT_OF_20_WORDS = (
    "a large red circle left of a small blue square on a yellow background and above a tiny "
    "green star"
)


@pytest.mark.parametrize("cache", [OFF, MASKED], ids=["cache off", "static step mask"])
@pytest.mark.parametrize("negative_prompt", ["", " "], ids=["one pass", "two passes"])
async def test_one_rank_and_two_make_the_same_picture(
    one: Client, two: Client, cache: CacheConfig, negative_prompt: str
) -> None:
    """Ranks split the work and change nothing but rounding; each repeats itself to the bit."""
    scale = 3.0 if negative_prompt else 1.0
    asked = fields(cache=cache, negative_prompt=negative_prompt, true_cfg_scale=scale)
    on_one, on_two = await picture(one, **asked), await picture(two, **asked)
    assert levels_apart(on_one, on_two) <= 1
    assert len(set(on_one)) > 10
    assert await picture(one, **asked) == on_one
    assert await picture(two, **asked) == on_two


async def test_a_static_step_mask_changes_the_picture(one: Client) -> None:
    """The comparison above would prove nothing if the mask were not in force."""
    assert await picture(one, cache=OFF) != await picture(one, cache=MASKED)


@pytest.mark.parametrize("ranks", ["one", "two"])
async def test_cancels_leave_nothing_behind(ranks: str, one: Client, two: Client) -> None:
    """After a cancel at any step, the next generation is what it was before, to the bit."""
    client = one if ranks == "one" else two
    masked = fields(cache=MASKED, true_cfg_scale=1.0)
    before = await picture(client, **masked)
    for step in (2, 5, LAST):
        steps = LAST if step == LAST else FOR_EVER
        left = client.generate(**fields(num_inference_steps=steps, seed=99))
        events = aiter(left)
        await watch_until(events, "step_completed", step)
        await left.cancel()
        # At the last step, cancel and completion can cross.
        may_complete = contextlib.suppress(Cancelled) if step == LAST else pytest.raises(Cancelled)
        with may_complete:
            await watch_until(events, "completed")
        assert await picture(client, **masked) == before


async def test_two_ranks_take_prompts_of_any_length(one: Client, two: Client) -> None:
    """No number of text tokens is one that two ranks cannot share."""
    words = PROMPT_OF_20_WORDS.split()
    assert len(words) == 20
    for count in range(1, 21):
        prompt = " ".join(words[:count])
        asked = small(prompt=prompt, true_cfg_scale=1.0, cache=OFF)
        apart = levels_apart(await picture(one, **asked), await picture(two, **asked))
        assert apart <= 1, f"{count} words"


async def test_tensor_parallelism_makes_the_same_picture(one: Client, tmp_path: Path) -> None:
    """Weights split over two ranks give what one rank gives, but for rounding."""
    split = tmp_path / "tensor.yaml"
    split.write_text("parallelism_config:\n  tp_size: 2\n", "utf-8")
    await _expect_same(one, tmp_path, split, 2)


@pytest.mark.soak
async def test_ulysses_and_tensor_parallelism_together_make_the_same_picture(
    one: Client, tmp_path: Path
) -> None:
    """Ranks that split heads and weights give what one rank gives, but for rounding."""
    split, (ulysses, tensor) = tmp_path / "both.yaml", shipped.BOTH
    split.write_text(
        f"parallelism_config:\n  ulysses_size: {ulysses}\n  tp_size: {tensor}\n", "utf-8"
    )
    await _expect_same(one, tmp_path, split, ulysses * tensor)


async def test_three_ranks_make_the_same_pictures(one: Client, tmp_path: Path) -> None:
    """Sizes whose number of tokens three ranks can share come out the same, but for rounding."""
    server = serve(tmp_path, "--world-size", "3")
    try:
        async with server.client() as many:
            for width, height in ((96, 96), (192, 128), (128, 192)):
                asked = small(width=width, height=height)
                apart = levels_apart(await picture(one, **asked), await picture(many, **asked))
                assert apart <= 1, f"{width}x{height}"
        server.stop()
    finally:
        server.clear_away()


async def _expect_same(one: Client, folder: Path, split: Path, ranks: int) -> None:
    server = serve(folder, "--world-size", str(ranks), "--cache-dit-config", str(split))
    try:
        async with server.client() as many:
            for cache in (OFF, MASKED):
                apart = levels_apart(
                    await picture(one, cache=cache), await picture(many, cache=cache)
                )
                assert apart <= 1
        server.stop()
    finally:
        server.clear_away()
