"""Videos come out as they went in: so many frames of a size at a rate, as MP4, pixels or latents.

The server makes videos of pictures with weights of noise; its defaults stand beside the model.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import safetensors.numpy
from PIL import Image
from tests.distributed.generations import RAW, watched
from tests.distributed.servers import Server, serve

from ditcast.v1.generation_pb2 import (
    INPUT_IMAGE_ROLE_LAST_FRAME,
    OUTPUT_FORMAT_LATENT_SAFETENSORS,
    OUTPUT_FORMAT_MP4,
    OUTPUT_FORMAT_PNG,
    OutputOptions,
)
from ditcast_client import Client, InvalidArgument, input_image
from ditcast_client.fields import GenerateFields

HERE = Path(__file__).parent
WIDTH, HEIGHT, FRAMES = 64, 48, 9
SEED = 5
PROMPT = "abc"
MP4 = OutputOptions(format=OUTPUT_FORMAT_MP4, quality=100)


def file_of(colour: tuple[int, int, int]) -> bytes:
    """Give a picture of one colour as a file."""
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), colour).save(file, "PNG")
    return file.getvalue()


FIRST, LAST = file_of((200, 60, 20)), file_of((20, 60, 200))


def fields(**changed: object) -> GenerateFields:
    """Give a request for a video, with some fields changed."""
    last = input_image(LAST, INPUT_IMAGE_ROLE_LAST_FRAME)
    usual = {"prompt": PROMPT, "seed": SEED, "images": [FIRST, last], "num_frames": FRAMES}
    return {**usual, "output": RAW, **changed}  # type: ignore[typeddict-item]


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """Make the pipeline."""
    made = folder / "filmmaker"
    subprocess.run(
        [sys.executable, HERE / "video_model.py", made],
        check=True,
        capture_output=True,
        env={"PYTHONPATH": str(HERE.parents[1])},
    )
    return made


@pytest.fixture(scope="module")
def filmmaker(folder: Path, model: Path) -> Iterator[Server]:
    """Serve it on one rank."""
    server = serve(folder, "--model", str(model))
    yield server
    server.stop()


@pytest.fixture
async def client(filmmaker: Server) -> AsyncIterator[Client]:
    """Connect to it."""
    async with filmmaker.client() as client:
        yield client


def pixels_of(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Give the frames of a raw output."""
    return np.frombuffer(data, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)


def directly(model: Path, folder: Path, arguments: dict[str, object]) -> bytes:
    """Call the pipeline without ditcast, with the threads of the server's rank."""
    names = {"image": FIRST, "last_image": LAST}
    for name, data in names.items():
        (folder / name).write_bytes(data)
    call = {
        "threads": len(psutil.Process().cpu_affinity() or [0]),
        "seed": SEED,
        "pictures": {name: str(folder / name) for name in names},
        "arguments": arguments,
    }
    (folder / "call").write_text(json.dumps(call))
    subprocess.run(
        [sys.executable, HERE / "direct_call.py", model, folder / "call", folder / "out"],
        check=True,
        capture_output=True,
    )
    return (folder / "out").read_bytes()


async def test_a_video_has_the_bytes_of_a_direct_call(
    client: Client, model: Path, tmp_path: Path
) -> None:
    """Both pictures, the frames and their number reach the pipeline; every frame comes back."""
    events, result = await watched(client.generate(**fields()))
    [output] = result.outputs
    assert output.media_type == "application/octet-stream"
    size = {"width": WIDTH, "height": HEIGHT, "num_frames": FRAMES, "num_inference_steps": 3}
    assert output.data == directly(model, tmp_path, {"prompt": PROMPT, **size})
    [started] = [event.started for event in events if event.WhichOneof("kind") == "started"]
    settled = started.parameters
    assert (settled.width, settled.height, settled.num_frames) == (WIDTH, HEIGHT, FRAMES)
    assert settled.fps == 12, "as ditcast.yaml beside the model says"
    assert [image.parameter for image in settled.images] == ["image", "last_image"]


async def test_an_mp4_shows_what_was_made(client: Client) -> None:
    """Frames, size and rate can be read from the file, and its pictures are close to the pixels."""
    [raw] = (await client.generate(**fields()).result()).outputs
    request = fields(output=MP4, fps=23.976)
    [film] = (await client.generate(**request).result()).outputs
    assert film.media_type == "video/mp4"
    with av.open(io.BytesIO(film.data), "r") as container:
        [stream] = container.streams
        assert stream.codec_context.name == "h264"
        assert stream.frames == FRAMES
        assert abs(float(stream.average_rate or 0) - 23.976) < 0.001
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    apart = np.stack(frames).astype(float) - pixels_of(raw.data)
    # Of noise, whose colour changes with every pixel: MP4 keeps colour at half of each side.
    assert 10 * np.log10(255**2 / np.mean(apart**2)) > 25
    [again] = (await client.generate(**request).result()).outputs
    assert again.data == film.data


async def test_several_videos_have_seeds_of_their_own(client: Client) -> None:
    """Output i is what a request for it alone gives."""
    both = (await client.generate(**fields(num_images=2, num_frames=5)).result()).outputs
    [second] = (await client.generate(**fields(seed=SEED + 1, num_frames=5)).result()).outputs
    assert len(pixels_of(both[0].data)) == len(pixels_of(both[1].data)) == 5
    assert both[0].data != both[1].data
    apart = pixels_of(both[1].data).astype(int) - pixels_of(second.data)
    assert np.abs(apart).max() <= 1


async def test_latents_are_given_in_place_of_frames(client: Client) -> None:
    """One tensor, three frames of latents for nine of the video, and nothing is decoded."""
    form = OutputOptions(format=OUTPUT_FORMAT_LATENT_SAFETENSORS)
    decoded = await client.generate(**fields()).result()
    result = await client.generate(**fields(output=form)).result()
    latents = safetensors.numpy.load(result.outputs[0].data)
    assert {name: tensor.shape for name, tensor in latents.items()} == {"latents": (1, 16, 3, 6, 8)}
    assert np.isfinite(latents["latents"]).all()
    assert result.timings.decode.ToMilliseconds() < decoded.timings.decode.ToMilliseconds() / 2


@pytest.mark.parametrize(
    ("changed", "field", "reason"),
    [
        ({"num_frames": 8}, "num_frames", "the nearest are 5 and 9"),
        ({"num_frames": 0}, "num_frames", "1 to 1000"),
        ({"num_frames": 1001}, "num_frames", "1 to 1000"),
        ({"fps": 0}, "fps", "over 0 to 240"),
        ({"fps": float("nan")}, "fps", "over 0 to 240"),
        ({"output": OutputOptions(format=OUTPUT_FORMAT_PNG)}, "output.format", "makes videos"),
        ({"output": OutputOptions(format=OUTPUT_FORMAT_MP4, quality=0)}, "output.quality", "1 to"),
        ({"images": [input_image(LAST, INPUT_IMAGE_ROLE_LAST_FRAME)]}, "images", "role image"),
        ({"num_frames": 997, "width": 1024, "height": 1024}, "width", "allowed"),
    ],
)
async def test_what_is_no_video_is_refused_by_name(
    client: Client, changed: dict[str, object], field: str, reason: str
) -> None:
    """Frames that cannot be, rates, forms of pictures, a video without its first picture."""
    with pytest.raises(InvalidArgument) as error:
        await client.generate(**fields(**changed)).result()
    [violation] = error.value.field_violations
    assert violation.field == field
    assert reason in violation.description


async def test_the_capabilities_tell_videos(client: Client) -> None:
    """What they are made of, in what forms they come, what their numbers are held to."""
    found = await client.capabilities()
    assert found.makes_videos
    assert list(found.output_formats) == [4, 5, 6]
    assert list(found.input_image_roles) == [1, 4]
    assert (found.limits.num_frames.maximum, found.limits.num_frames_step) == (1000, 4)
    [frames] = [each for each in found.parameters if each.name == "num_frames"]
    assert (frames.default.number_value, frames.maximum) == (5, 1000)


def test_the_command_makes_a_film(filmmaker: Server, tmp_path: Path) -> None:
    """The command of the client's README: two pictures in, a film out."""
    (tmp_path / "cup.png").write_bytes(FIRST)
    (tmp_path / "floor.png").write_bytes(LAST)
    options = "--image cup.png --last-frame floor.png --num-frames 17 --fps 8 -o falling.mp4"
    readme = (HERE.parents[1] / "clients/python/README.md").read_text("utf-8")
    assert f'ditcast generate "the cup falls" {options}' in readme
    command = [sys.executable, "-m", "ditcast_client", "generate", "the cup falls"]
    subprocess.run(
        [*command, *options.split(), "--address", filmmaker.address],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    with av.open(str(tmp_path / "falling.mp4"), "r") as container:
        stream = container.streams.video[0]
        assert stream.frames == 17
        assert stream.average_rate == 8
        assert (stream.width, stream.height) == (WIDTH, HEIGHT)
