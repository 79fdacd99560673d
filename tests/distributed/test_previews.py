"""Previews show what the outputs would be, and change nothing about them."""

from __future__ import annotations

import io

import grpc
import numpy as np
import pytest
from PIL import Image
from tests.distributed.generations import (
    FOR_EVER,
    MASKED,
    OFF,
    RAW,
    ending,
    fields,
    read_to_failure,
    stub_of,
    watched,
)
from tests.distributed.servers import Server

from ditcast.v1.acceleration_pb2 import CacheConfig
from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast.v1.generation_pb2 import GenerationEvent, Preview, ProgressOptions
from ditcast_client import Cancelled, Client, Generation

EVERY = 3
SHOWN = ProgressOptions(preview_every_n_steps=EVERY)
MAX_BYTES = 256 * 2**10


def previews(events: list[GenerationEvent]) -> list[Preview]:
    """Give the previews among events."""
    return [event.preview for event in events if event.HasField("preview")]


def pixels(preview: Preview) -> np.ndarray:
    """Decode a preview, and hold it to what it says of itself."""
    assert 0 < len(preview.data) <= MAX_BYTES
    picture = Image.open(io.BytesIO(preview.data))
    assert (picture.format, preview.media_type) == ("JPEG", "image/jpeg")
    assert picture.size == (preview.width, preview.height)
    return np.asarray(picture.convert("RGB"), np.float64)


@pytest.mark.parametrize("cache", [OFF, MASKED], ids=["cache off", "static step mask"])
@pytest.mark.parametrize("ranks", ["one", "two"])
async def test_previews_change_no_byte(
    ranks: str, cache: CacheConfig, one: Client, two: Client
) -> None:
    """With and without them the output is the same, cached or not, on one rank and on two."""
    client = one if ranks == "one" else two
    _, plain = await watched(client.generate(**fields(cache=cache)))
    events, shown = await watched(client.generate(**fields(cache=cache, progress=SHOWN)))
    assert shown.outputs == plain.outputs
    assert [preview.step for preview in previews(events)] == [3, 6]
    logged = [event.sequence for event in events if not event.HasField("heartbeat")]
    assert logged == list(range(1, len(logged) + 1))
    assert shown.timings.previews.ToTimedelta().total_seconds() > 0
    assert plain.timings.previews.ToTimedelta().total_seconds() == 0


async def test_previews_of_the_last_step_show_the_outputs(one: Client) -> None:
    """Small, but the same picture; each output has its own."""
    progress = ProgressOptions(preview_every_n_steps=8, preview_max_side=64)
    request = fields(num_images=2, width=128, height=96, progress=progress)
    events, result = await watched(one.generate(**request))
    made = previews(events)
    assert [(preview.step, preview.output_index) for preview in made] == [(8, 0), (8, 1)]
    for preview, output in zip(made, result.outputs, strict=True):
        assert (preview.width, preview.height) == (64, 48)
        small = Image.frombytes("RGB", (128, 96), output.data).resize(
            (64, 48), Image.Resampling.BOX
        )
        likeness = np.corrcoef(pixels(preview).ravel(), np.asarray(small, np.float64).ravel())
        assert likeness[0, 1] > 0.7


async def test_previews_are_never_larger_than_the_output(one: Client) -> None:
    """The default is larger than this picture."""
    events, _ = await watched(one.generate(**fields(width=64, height=96, progress=SHOWN)))
    assert {(preview.width, preview.height) for preview in previews(events)} == {(64, 96)}


async def test_a_late_reader_gets_the_newest_preview_alone(one: Client) -> None:
    """Those before it have lost their data, and keep their numbers."""
    progress = ProgressOptions(preview_every_n_steps=1)
    endless = fields(width=64, height=64, num_inference_steps=FOR_EVER, progress=progress)
    async with one.generate(**endless) as generation:
        seen = 0
        async for event in generation:
            seen += bool(event.preview.data)
            if seen == 4:
                break_at = event.sequence
                async with one.watch(generation.request_id) as late:
                    async for other in late:
                        if other.sequence < break_at:
                            assert not other.preview.data
                        elif other.preview.data:
                            break
                await generation.cancel()
                break


async def _cancel_at_a_preview(generation: Generation) -> None:
    async for event in generation:
        if event.HasField("preview"):
            await generation.cancel()


@pytest.mark.parametrize("ranks", ["one", "two"])
async def test_a_cancel_between_previews_leaves_nothing_behind(
    ranks: str, one: Client, two: Client
) -> None:
    """The next generation is as ever, and shows no preview of the one before."""
    client = one if ranks == "one" else two
    _, before = await watched(client.generate(**fields(cache=MASKED)))
    endless = client.generate(**fields(num_inference_steps=FOR_EVER, progress=SHOWN))
    with pytest.raises(Cancelled):
        await _cancel_at_a_preview(endless)
    events, after = await watched(client.generate(**fields(cache=MASKED)))
    assert after.outputs == before.outputs
    assert previews(events) == []


async def test_wrong_preview_options_are_named(server_one: Server, one: Client) -> None:
    """Both at once, by their paths; and what is right says that it can be asked for."""
    assert (await one.capabilities()).previews_supported
    wrong = ProgressOptions(preview_every_n_steps=-1, preview_max_side=8)
    request = GenerateRequest(prompt="a", output=RAW, progress=wrong)
    async with stub_of(server_one.address) as stub:
        _, error = await read_to_failure(stub.Generate(request))
    found = ending(error)
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    for name in ("progress.preview_every_n_steps", "progress.preview_max_side"):
        assert name in found.message
