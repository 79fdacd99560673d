"""What a request asks for is what it gets: images, seeds, formats, sizes, and the receipt."""

from __future__ import annotations

import hashlib
import io

import pytest
from google.protobuf.json_format import MessageToDict
from PIL import Image
from tests.distributed.generations import (
    PROMPT,
    fields,
    kinds,
    levels_apart,
    mean_apart,
    picture,
    small,
    watched,
)
from tests.distributed.servers import Server

from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast.v1.generation_pb2 import (
    OUTPUT_FORMAT_JPEG,
    OUTPUT_FORMAT_PNG,
    OUTPUT_FORMAT_WEBP,
    OutputOptions,
    ResolvedParameters,
)
from ditcast_client import Client, InvalidArgument, NotFound
from ditcast_client.fields import GenerateFields
from ditcast_runtime.config import STARTER_MODEL, STARTER_MODEL_ID


async def test_images_of_one_request_are_those_of_its_seeds_one_by_one(
    one: Client, two: Client
) -> None:
    """Picture i uses seed + i modulo 2^64."""
    first = 2**64 - 2
    for client in (one, two):
        several = small(num_images=3, seed=first)
        together = (await client.generate(**several).result()).outputs
        assert len(together) == 3
        for output, seed in zip(together, (first, first + 1, 0), strict=True):
            single = await picture(client, **small(seed=seed))
            assert levels_apart(output.data, single) <= 1
        assert len({output.data for output in together}) == 3


async def test_every_format_decodes_to_the_same_picture(one: Client) -> None:
    """PNG holds the raw pixels exactly; JPEG and WebP come near; quality makes files smaller."""
    raw = await picture(one)
    sizes: dict[tuple[int, int | None], int] = {}
    for format_, quality, tolerance in (
        (OUTPUT_FORMAT_PNG, None, 0),
        (OUTPUT_FORMAT_JPEG, 95, 3),
        (OUTPUT_FORMAT_JPEG, 20, 12),
        (OUTPUT_FORMAT_WEBP, 95, 3),
        (OUTPUT_FORMAT_WEBP, 20, 12),
    ):
        options = OutputOptions(format=format_, quality=quality)
        [output] = (await one.generate(**fields(output=options)).result()).outputs
        with Image.open(io.BytesIO(output.data)) as image:
            assert image.size == (128, 128)
            assert f"image/{(image.format or '').lower()}" == output.media_type
            decoded = image.convert("RGB").tobytes()
        assert mean_apart(raw, decoded) <= tolerance, output.media_type
        sizes[format_, quality] = len(output.data)
    assert sizes[OUTPUT_FORMAT_JPEG, 20] < sizes[OUTPUT_FORMAT_JPEG, 95]
    assert sizes[OUTPUT_FORMAT_WEBP, 20] < sizes[OUTPUT_FORMAT_WEBP, 95]


async def test_width_and_height_are_not_mixed_up(one: Client, two: Client) -> None:
    """A picture that is not square has the width and height that were asked for."""
    options = OutputOptions(format=OUTPUT_FORMAT_PNG)
    for client in (one, two):
        asked = fields(width=160, height=96, num_inference_steps=2, output=options)
        [output] = (await client.generate(**asked).result()).outputs
        with Image.open(io.BytesIO(output.data)) as image:
            assert image.size == (160, 96)


async def test_the_receipt_says_what_was_run(two: Client) -> None:
    """Digests, schedule, model, versions and ranks are those of this very generation."""
    result = await two.generate(**fields(num_images=2)).result()
    receipt = result.receipt
    assert [output.sha256 for output in receipt.outputs] == [
        hashlib.sha256(output.data).digest() for output in result.outputs
    ]
    sigmas = list(receipt.sigmas_used)
    assert len(sigmas) == 9
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0
    assert receipt.weights_digest == _digest_of_the_starter()
    assert receipt.model_id == STARTER_MODEL_ID
    assert receipt.world_size == 2
    assert receipt.parallelism.ulysses_degree == 2
    assert list(receipt.parallelism.extra_parallel_modules) == ["text_encoder", "vae"]
    assert (receipt.device, receipt.dtype, receipt.deterministic) == ("cpu", "float32", True)
    assert receipt.threads_per_rank >= 1
    assert {"torch", "diffusers", "cache-dit", "ditcast"} <= set(receipt.library_versions)
    assert receipt.parameters == result.started.parameters


async def test_the_steps_carry_the_schedule(one: Client) -> None:
    """Each step says its timestep and sigma, and they are those of the receipt."""
    events, result = await watched(one.generate(**fields(num_inference_steps=4)))
    steps = [event.step_completed for event in events if event.HasField("step_completed")]
    assert [step.sigma for step in steps] == list(result.receipt.sigmas_used)[:4]
    assert [step.timestep for step in steps] == pytest.approx(
        [1000 * sigma for sigma in list(result.receipt.sigmas_used)[:4]], rel=1e-4
    )


@pytest.mark.parametrize("ranks", ["one", "two"])
async def test_replaying_a_receipt_gives_the_same_bytes(
    ranks: str, one: Client, two: Client
) -> None:
    """A receipt's parameters, sent as a request, leave nothing to the defaults."""
    client = one if ranks == "one" else two
    asked: GenerateFields = {"prompt": PROMPT, "negative_prompt": " ", "num_inference_steps": 8}
    first = await client.generate(**asked).result()
    again = await client.generate(_replay(first.receipt.parameters)).result()
    assert again.outputs[0].data == first.outputs[0].data
    assert again.receipt.parameters == first.receipt.parameters
    assert first.seed == again.seed


async def test_validate_only_settles_everything_and_runs_nothing(
    one: Client, server_one: Server
) -> None:
    """The answer is what would run; no generation has the id."""
    validated = one.generate(prompt=PROMPT, validate_only=True)
    events, result = await watched(validated)
    assert kinds(events) == ["started"]
    settled = result.started.parameters
    assert (settled.width, settled.height, settled.num_inference_steps) == (128, 128, 20)
    assert settled.HasField("true_cfg_scale")
    with pytest.raises(NotFound):
        await one.cancel(validated.request_id)
    ended = [entry for entry in server_one.entries() if entry.get("event") == "generation ended"]
    assert validated.request_id not in {entry["request_id"] for entry in ended}
    ran = await one.generate(_replay(settled)).result()
    assert ran.started.parameters == settled


async def test_two_ranks_share_sizes_that_do_not_fall_into_equal_parts(
    one: Client, two: Client
) -> None:
    """144x144 has 81 image tokens: one rank takes 41 of them, the other 40, of the same picture."""
    asked = fields(width=144, height=144, num_inference_steps=2)
    alone, shared = await picture(one, **asked), await picture(two, **asked)
    assert len(alone) == 144 * 144 * 3
    assert levels_apart(alone, shared) <= 1


async def test_sizes_between_the_pixels_that_the_model_makes_are_refused_with_the_nearest(
    one: Client,
) -> None:
    """Nothing is rounded in silence: 100x130 is refused, and what is named instead works."""
    with pytest.raises(InvalidArgument) as refused:
        await one.generate(**fields(width=100, height=130)).result()
    fields_refused = [violation.field for violation in refused.value.field_violations]
    assert fields_refused == ["width", "height"]
    named = _sizes_in(refused.value.field_violations[0].description)
    assert named
    for width, height in named:
        assert width % 16 == height % 16 == 0
        validated = fields(width=width, height=height, validate_only=True)
        await one.generate(**validated).result()


def _replay(parameters: ResolvedParameters) -> GenerateRequest:
    """Make a request of a receipt's parameters: the names are the same."""
    request = GenerateRequest()
    for name in MessageToDict(parameters, preserving_proto_field_name=True):
        value = getattr(parameters, name)
        if name == "sigmas":
            request.sigmas.extend(value)
        elif hasattr(value, "DESCRIPTOR"):
            getattr(request, name).CopyFrom(value)
        else:
            setattr(request, name, value)
    return request


def _sizes_in(text: str) -> list[tuple[int, int]]:
    words = text.replace(",", " ").replace(";", " ").split()
    return [
        (int(width), int(height))
        for width, _, height in (word.partition("x") for word in words)
        if width.isdecimal() and height.isdecimal()
    ]


def _digest_of_the_starter() -> str:
    """Hash the weights as the contract's comment on `weights_digest` says."""
    digest = hashlib.sha256()
    for path in sorted(STARTER_MODEL.rglob("*.safetensors")):
        digest.update(str(path.relative_to(STARTER_MODEL)).encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
