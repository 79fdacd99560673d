"""Pictures go in on two ranks, and change what comes out as in a call of the pipeline itself.

The server paints into pictures with the embedded model's weights; its ranks can be made to fail.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageDraw
from tests.distributed.generations import RAW, kinds, levels_apart, watched
from tests.distributed.servers import Server, serve

from ditcast.v1.generation_pb2 import (
    INPUT_IMAGE_ROLE_MASK,
    OUTPUT_FORMAT_LATENT_SAFETENSORS,
    InputImage,
    OutputOptions,
)
from ditcast_client import Client, InvalidArgument, input_image
from ditcast_client.fields import GenerateFields

SIDE = 128
HERE = Path(__file__).parent
PROMPT = "a large red circle left of a small green star on a yellow background"
ARGUMENTS = {"prompt": PROMPT, "num_inference_steps": 8, "width": SIDE, "height": SIDE}
SEED = 3


def file_of(image: Image.Image) -> bytes:
    """Give a picture as a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def picture() -> Image.Image:
    """Draw a circle and a square."""
    image = Image.new("RGB", (SIDE, SIDE), (240, 220, 40))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 40, 60, 90), fill=(220, 30, 30))
    draw.rectangle((80, 50, 110, 80), fill=(30, 60, 220))
    return image


def mask() -> Image.Image:
    """Let the square change."""
    image = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(image).rectangle((66, 36, 124, 94), fill=255)
    return image


PICTURES = [input_image(file_of(picture())), input_image(file_of(mask()), INPUT_IMAGE_ROLE_MASK)]


def fields(**changed: object) -> GenerateFields:
    """Give a request to paint, with some fields changed."""
    usual = {**ARGUMENTS, "seed": SEED, "images": PICTURES, "output": RAW}
    return {**usual, **changed}  # type: ignore[typeddict-item]


def directly(folder: Path, call: dict[str, object]) -> bytes:
    """Call the pipeline without ditcast."""
    description, out = (folder / f"{uuid.uuid4().hex}.{ending}" for ending in ("json", "rgb"))
    description.write_text(json.dumps(call))
    script = HERE / "direct_call.py"
    subprocess.run(
        [sys.executable, script, folder / "painter", description, out],
        check=True,
        capture_output=True,
    )
    return out.read_bytes()


@pytest.fixture(scope="module")
def painter(folder: Path) -> Iterator[Server]:
    """Serve it on two ranks, which fail where a request id says so."""
    model = folder / "painter"
    script = HERE / "inpaint_model.py"
    subprocess.run([sys.executable, script, model], check=True, capture_output=True)
    flags = ("--world-size", "2", "--crash-loop-losses", "50", "--max-bytes-in-flight", "4000000")
    server = serve(folder, "--model", str(model), *flags, faults=True)
    yield server
    server.stop()


@pytest.fixture
async def client(painter: Server) -> AsyncIterator[Client]:
    """Connect to it."""
    async with painter.client() as client:
        yield client


def inputs_held(server: Server) -> int:
    """Count the descriptors and mappings of input pictures, in the service and all ranks."""
    held = 0
    for process in (psutil.Process(server.process.pid), *server.ranks()):
        folder = Path("/proc") / str(process.pid)
        held += sum("ditcast-input" in str(entry.resolve()) for entry in (folder / "fd").iterdir())
        held += (folder / "maps").read_text().count("ditcast-input")
    return held


async def test_two_ranks_paint_what_the_pipeline_itself_paints(
    painter: Server, client: Client, folder: Path, tmp_path: Path
) -> None:
    """The pixels reach every rank, the mask keeps what it covers, and the receipt has digests."""
    names = {"image": tmp_path / "a.png", "mask_image": tmp_path / "m.png"}
    for path, sent in zip(names.values(), PICTURES, strict=True):
        path.write_bytes(sent.data)
    events, result = await watched(client.generate(**fields()))
    [output] = result.outputs
    pictures = {name: str(path) for name, path in names.items()}
    call = {"threads": 1, "seed": SEED, "pictures": pictures, "arguments": ARGUMENTS}
    assert levels_apart(output.data, directly(folder, call)) <= 1
    assert levels_apart(output.data, picture().tobytes()) > 50
    [started] = [event.started for event in events if event.WhichOneof("kind") == "started"]
    for images in (started.parameters.images, result.receipt.parameters.images):
        assert [(each.parameter, each.width, each.height) for each in images] == [
            (name, SIDE, SIDE) for name in names
        ]
        digests = [hashlib.sha256(sent.data).digest() for sent in PICTURES]
        assert [each.sha256 for each in images] == digests
    assert inputs_held(painter) == 0


async def test_a_lost_rank_gets_the_pictures_again(painter: Server, client: Client) -> None:
    """A rank is killed at a step: the generation begins again with the same pictures."""
    [undisturbed] = (await client.generate(**fields()).result()).outputs
    request_id = f"fault-inside-kill-1-2-1-{uuid.uuid4().hex[:8]}"
    events, result = await watched(client.generate(**fields(request_id=request_id)))
    assert "restarted" in kinds(events)
    assert result.outputs[0].data == undisturbed.data
    assert inputs_held(painter) == 0


async def test_what_ends_otherwise_holds_no_pictures_either(
    painter: Server, client: Client
) -> None:
    """Neither a cancelled generation nor a refused or a validated request keeps anything."""
    async with client.generate(**fields(num_inference_steps=1000)) as generation:
        async for event in generation:
            if event.WhichOneof("kind") == "step_completed":
                assert inputs_held(painter) > 0
                break
    await painter.ended(generation.request_id)
    await client.generate(**fields(validate_only=True)).result()
    with pytest.raises(InvalidArgument):
        await client.generate(**fields(width=1)).result()
    await asyncio.sleep(0.5)
    assert inputs_held(painter) == 0


async def test_latents_decode_to_the_same_picture(
    client: Client, folder: Path, tmp_path: Path
) -> None:
    """What is given in place of a picture is all that the decoder needs to make it."""
    [pixels] = (await client.generate(**fields()).result()).outputs
    form = OutputOptions(format=OUTPUT_FORMAT_LATENT_SAFETENSORS)
    [latents] = (await client.generate(**fields(output=form)).result()).outputs
    assert latents.media_type == "application/octet-stream"
    path = latents.save(tmp_path / "latents.safetensors")
    assert directly(folder, {"threads": 1, "latents": str(path)}) == pixels.data


CUT_OFF = InputImage(data=PICTURES[0].data[:100])
SMALL_MASK = input_image(file_of(mask().resize((64, 64))), INPUT_IMAGE_ROLE_MASK)


@pytest.mark.parametrize(
    ("images", "refused"),
    [
        ([], {"images"}),
        (PICTURES[:1], {"images"}),
        ([CUT_OFF, InputImage(data=b"x", parameter="mask")], {"images[0].data", "images[1].data"}),
        ([*PICTURES, PICTURES[0]], {"images[2].parameter"}),
        ([*PICTURES, InputImage(data=PICTURES[0].data, parameter="img")], {"images[2].parameter"}),
        ([PICTURES[0], SMALL_MASK], {"images[1].data"}),
        (PICTURES * 5, {"images"}),
    ],
    ids=["none", "no mask", "broken", "two images", "unknown name", "mask's size", "too many"],
)
async def test_pictures_are_refused_by_name(
    client: Client, images: list[InputImage], refused: set[str]
) -> None:
    """Every wrong picture is named with its place in the request, before a rank is touched."""
    with pytest.raises(InvalidArgument) as error:
        await client.generate(**fields(images=images)).result()
    assert refused <= {violation.field for violation in error.value.field_violations}


async def test_what_the_pipeline_refuses_of_a_picture_is_the_callers_fault(client: Client) -> None:
    """It looks at pictures on its way to the first step, when no check beforehand can tell."""
    weak = {"strength": 0.0}
    with pytest.raises(InvalidArgument) as error:
        await client.generate(**fields(pipeline_kwargs=weak)).result()
    [violation] = error.value.field_violations
    assert violation.field == "pipeline_kwargs.strength"


async def test_pictures_count_as_bytes_in_flight(client: Client) -> None:
    """What could never be held is refused at once, as what is too large to come out."""
    large = input_image(file_of(Image.new("RGB", (1200, 1200))))
    wide_mask = input_image(file_of(Image.new("L", (1200, 1200))), INPUT_IMAGE_ROLE_MASK)
    with pytest.raises(InvalidArgument, match=r"images.*with the outputs they take"):
        await client.generate(**fields(images=[large, wide_mask])).result()


async def test_the_capabilities_say_what_pictures_it_takes(client: Client) -> None:
    """Roles, parameters with their type, and limits."""
    found = await client.capabilities()
    types = {each.name: (each.type, each.required) for each in found.parameters}
    assert types["image"] == types["mask_image"] == (9, True)
    assert list(found.input_image_roles) == [1, 2]
    assert (found.limits.input_images.minimum, found.limits.input_images.maximum) == (2, 8)
    assert found.limits.max_input_pixels == 4096 * 4096
    assert not found.makes_videos
    assert list(found.output_formats) == [1, 2, 3, 5, 6]


def test_the_command_edits_a_picture(painter: Server, tmp_path: Path) -> None:
    """The command of the client's README: files in, a file out."""
    (tmp_path / "cup.png").write_bytes(PICTURES[0].data)
    (tmp_path / "where.png").write_bytes(PICTURES[1].data)
    command = 'generate "a blue cup" --image cup.png --mask where.png -o edited.png'
    assert f"ditcast {command}" in (HERE.parents[1] / "clients/python/README.md").read_text()
    arguments = ["generate", "a blue cup", *command.split('" ')[1].split()]
    subprocess.run(
        [sys.executable, "-m", "ditcast_client", *arguments, "--address", painter.address],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    # No size was asked for: it is the picture's own.
    with Image.open(tmp_path / "edited.png") as edited:
        assert edited.size == (SIDE, SIDE)
