"""Which parameters take pictures is read from signatures, however they are spelled."""

from __future__ import annotations

import PIL.Image
import pytest

from ditcast_runtime.image_parameters import ImageParameter, image_parameters
from ditcast_runtime.messages import ParameterKind

# ruff: noqa: D101, D102, ANN001, ANN201, ANN204, F821, RUF013
# mypy: ignore-errors
# pyright: reportUndefinedVariable=false, reportArgumentType=false, reportAttributeAccessIssue=false
# The classes stand for pipelines, and are annotated as those are.

ONE, SEVERAL = ParameterKind.IMAGE, ParameterKind.IMAGE_LIST
OPTIONAL = ImageParameter(ONE, required=False)


class Old:
    def __call__(self, prompt, image: PIL.Image.Image | list[PIL.Image.Image] = None, strength=1.0):
        """Annotates no None, and yet defaults to it."""


class Fill:
    def __call__(
        self,
        image: torch.FloatTensor | None = None,
        mask_image: torch.FloatTensor | None = None,
        masked_image_latents: torch.FloatTensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
    ):
        """Annotates tensors alone."""


class Edit:
    def __call__(self, image: PipelineImageInput | None = None):
        size = image[0].size if isinstance(image, list) else image.size
        return size, image


class References:
    def __call__(self, image: PIL.Image.Image | list[PIL.Image.Image] | None = None):
        return image.size if image is not None else None

    def prepare_latents(self, images, height): ...


class Videos:
    def __call__(
        self,
        image: PIL.Image.Image = None,
        video: list[PIL.Image.Image] = None,
        pose_video: list[PIL.Image.Image] | None = None,
    ):
        """Takes a picture or a video."""


class Text:
    def __call__(self, prompt: str, image_size: int = 8, image: str | None = None): ...


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Old, {"image": ImageParameter(ONE, required=True)}),
        (Fill, {"image": OPTIONAL, "mask_image": OPTIONAL}),
        (Edit, {"image": ImageParameter(ONE, required=True)}),
        (References, {"image": ImageParameter(SEVERAL, required=False)}),
        (
            Videos,
            {
                "image": ImageParameter(ONE, required=False),
                "video": ImageParameter(SEVERAL, required=False),
                "pose_video": ImageParameter(SEVERAL, required=False),
            },
        ),
        (Text, {}),
    ],
)
def test_parameters_are_found(kind: type, expected: dict[str, ImageParameter]) -> None:
    """By annotation or name; required where the call cannot do without; a list where several go."""
    assert image_parameters(kind()) == expected
