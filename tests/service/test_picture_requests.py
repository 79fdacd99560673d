"""Requests for pictures and videos, settled for pipelines of several kinds by their facts alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from tests.service.fakes import CONFIGURATION, FACTS, parameter

from ditcast_runtime.config import GenerationDefaults
from ditcast_runtime.errors import InvalidRequest
from ditcast_runtime.generation import (
    AskedOutput,
    ImageRole,
    InputImage,
    OutputFormat,
    Parameters,
    Request,
)
from ditcast_runtime.messages import Facts, ParameterFact, ParameterKind
from ditcast_service.config import ServerConfig
from ditcast_service.forms import check_video_defaults, formats
from ditcast_service.picture_roles import by_role, roles
from ditcast_service.validation import resolve


def taking(*names: str, several: tuple[str, ...] = (), required: tuple[str, ...] = ()) -> Facts:
    """Describe a pipeline with these parameters for pictures."""
    pictures = [
        msgspec.structs.replace(
            parameter(name, ParameterKind.IMAGE_LIST if name in several else ParameterKind.IMAGE),
            required=name in required,
        )
        for name in names
    ]
    return msgspec.structs.replace(FACTS, parameters=(*FACTS.parameters, *pictures))


def filming(*more: ParameterFact, **changed: object) -> Facts:
    """Describe a pipeline that makes videos."""
    frames = parameter("num_frames", ParameterKind.INT, default=17)
    parameters = (*FACTS.parameters, frames, *more)
    usual = {"parameters": parameters, "makes_videos": True, "num_frames_step": 4}
    return msgspec.structs.replace(FACTS, **(usual | changed))


def picture(
    role: ImageRole = ImageRole.IMAGE, parameter: str = "", size: tuple[int, int] = (64, 64)
) -> InputImage:
    """Describe a picture that was decoded."""
    width, height = size
    mode = "L" if role is ImageRole.MASK else "RGB"
    sizes = {"width": width, "height": height, "mode": mode, "size_bytes": 10}
    return InputImage(role=role, parameter=parameter, sha256=b"x", **sizes)  # type: ignore[arg-type]


def settle(facts: Facts, defaults: GenerationDefaults | None = None, **asked: Any) -> Parameters:  # noqa: ANN401
    """Resolve a request."""
    request = Request(prompt="a cup", **asked)
    configuration = dataclasses.replace(
        CONFIGURATION, defaults=defaults or GenerationDefaults(num_inference_steps=20)
    )
    parameters, _ = resolve(request, facts, ServerConfig(), configuration)
    return parameters


def refused(facts: Facts, **asked: Any) -> dict[str, str]:  # noqa: ANN401
    """Give why a request is refused, by field."""
    with pytest.raises(InvalidRequest) as error:
        settle(facts, **asked)
    return {problem.field: problem.reason for problem in error.value.problems}


@pytest.mark.parametrize(
    ("names", "role", "expected"),
    [
        (("image",), "image", "image"),
        (("image", "image_reference"), "image", "image"),
        (("input_images",), "image", "input_images"),
        (("reference_image", "cond_image"), "image", None),
        (("image", "mask_image"), "mask", "mask_image"),
        (("control_image", "control_mask"), "mask", "control_mask"),
        (("control_image", "control_mask"), "control", "control_image"),
        (("control_image",), "image", None),
        (("image", "last_image"), "last_frame", "last_image"),
        (("image", "end_image"), "last_frame", "end_image"),
        (("ip_adapter_image",), "image", None),
        (("image",), "mask", None),
        (("video",), "image", "video"),
    ],
)
def test_a_role_finds_its_parameter_by_name(
    names: tuple[str, ...], role: str, expected: str | None
) -> None:
    """The usual name, else the only one that is meant; where two are, there is no telling."""
    found = by_role(ImageRole(role), taking(*names))
    assert (found.name if found else None) == expected


def test_pictures_go_where_their_role_says() -> None:
    """In the order of the request, each with the parameter that takes it."""
    facts = taking("image", "mask_image", "ip_adapter_image", several=("image",))
    assert roles(facts) == [ImageRole.IMAGE, ImageRole.MASK]
    images = (picture(), picture(ImageRole.MASK), picture(), picture(parameter="ip_adapter_image"))
    parameters = settle(facts, images=images)
    names = [use.parameter for use in parameters.images]
    assert names == ["image", "mask_image", "image", "ip_adapter_image"]


def test_a_required_picture_must_be_there() -> None:
    """The refusal says in which role it would come."""
    reasons = refused(taking("image", "mask_image", required=("image", "mask_image")))
    assert "image (role image), mask_image (role mask)" in reasons["images"]
    assert not settle(taking("image")).images


def test_one_picture_is_one() -> None:
    """A parameter that takes one is given no second; one that takes several is."""
    two = (picture(), picture())
    assert "takes one picture" in refused(taking("image"), images=two)["images[1].parameter"]
    assert len(settle(taking("image", several=("image",)), images=two).images) == 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 48), (64, 48)), ((70, 50), (64, 48)), ((512, 256), (176, 80)), ((8, 8), (16, 16))],
)
def test_an_unset_size_is_the_pictures(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Its own, or of its shape at the pipeline's usual number of pixels, in whole multiples."""
    parameters = settle(taking("image"), images=(picture(size=size),))
    assert (parameters.width, parameters.height) == expected


def test_a_size_that_is_asked_for_or_configured_holds() -> None:
    """The picture is then fitted to it by the pipeline."""
    images = (picture(size=(64, 48)),)
    asked = settle(taking("image"), images=images, width=96)
    assert (asked.width, asked.height) == (96, 128)
    defaults = GenerationDefaults(width=32, height=32, num_inference_steps=2)
    configured = settle(taking("image"), defaults, images=images)
    assert (configured.width, configured.height) == (32, 32)


def test_a_pipeline_without_sizes_makes_the_pictures_size() -> None:
    """Where the call takes no width, not even a default of the configuration can change it."""
    facts = taking("image")
    kept = tuple(fact for fact in facts.parameters if fact.name not in ("width", "height"))
    facts = msgspec.structs.replace(facts, parameters=kept)
    defaults = GenerationDefaults(num_inference_steps=2)
    parameters = settle(facts, defaults, images=(picture(size=(512, 264)),))
    assert (parameters.width, parameters.height) == (512, 256)


def test_forms_follow_from_what_is_made() -> None:
    """The default first; latents where the pipeline can give them."""
    assert formats(FACTS)[0] is OutputFormat.PNG
    assert formats(filming()) == (
        OutputFormat.MP4,
        OutputFormat.RAW_RGB8,
        OutputFormat.LATENT_SAFETENSORS,
    )
    closed = msgspec.structs.replace(FACTS, latents_out=False)
    latents = AskedOutput(format=OutputFormat.LATENT_SAFETENSORS)
    assert "cannot give its latents" in refused(closed, output=latents)["output.format"]
    assert settle(filming()).output.format is OutputFormat.MP4


def test_odd_sides_are_refused_for_mp4_alone() -> None:
    """Both sides are named; raw frames of the same size are made."""
    facts = filming(size_multiple=1)
    odd: dict[str, Any] = {"width": 65, "height": 47}
    assert set(refused(facts, **odd)) == {"width", "height"}
    raw = AskedOutput(format=OutputFormat.RAW_RGB8)
    assert settle(facts, **odd, output=raw).width == 65


@pytest.mark.parametrize(
    ("asked", "configured", "own", "expected"),
    [
        (8.0, 12.0, 24, 8.0),
        (None, 12.0, 24, 12.0),
        (None, None, 24, 24.0),
        (None, None, None, 16.0),
    ],
)
def test_the_rate_comes_from_the_nearest_who_says_it(
    asked: float | None, configured: float | None, own: int | None, expected: float
) -> None:
    """The request, the configuration, the pipeline, and 16 in the end."""
    facts = filming(parameter("frame_rate", ParameterKind.INT, default=own)) if own else filming()
    defaults = GenerationDefaults(fps=configured, num_inference_steps=2)
    assert settle(facts, defaults, fps=asked).fps == expected


def test_a_pipeline_that_counts_in_whole_frames_gets_no_others() -> None:
    """What would be rounded is refused."""
    facts = filming(parameter("fps", ParameterKind.INT, default=24))
    assert "no whole number" in refused(facts, fps=23.976)["fps"]


def test_frames_come_from_the_nearest_who_says_them() -> None:
    """The request, the configuration, the pipeline; and a pipeline of another word for them."""
    defaults = GenerationDefaults(num_frames=9, num_inference_steps=2)
    assert settle(filming(), defaults, num_frames=5).num_frames == 5
    assert settle(filming(), defaults).num_frames == 9
    assert settle(filming()).num_frames == 17
    frames = parameter("video_length", ParameterKind.INT)
    facts = filming(parameters=(*FACTS.parameters, frames))
    assert settle(facts, num_frames=5).num_frames == 5
    assert "required" in refused(facts)["num_frames"]


def test_frames_count_as_bytes() -> None:
    """A video of a size that is allowed may be too long; a short one is not."""
    size: dict[str, Any] = {"width": 1024, "height": 1024}
    assert "allowed" in refused(filming(), num_frames=997, **size)["width"]
    assert settle(filming(), num_frames=5, **size).width == 1024


def test_defaults_of_videos_are_held_to_what_requests_are() -> None:
    """A configuration that no request could use is refused."""
    config = ServerConfig()
    wrong = check_video_defaults(GenerationDefaults(num_frames=18, fps=500.0), filming(), config)
    assert [problem.field for problem in wrong] == ["num_frames", "fps"]
    assert check_video_defaults(GenerationDefaults(fps=8.0), FACTS, config)
    assert not check_video_defaults(GenerationDefaults(num_frames=9, fps=8), filming(), config)
