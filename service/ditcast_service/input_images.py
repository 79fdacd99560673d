"""Input pictures: from the bytes of a caller to pixels, in threads, or why they cannot be.

Nothing is opened but what came with the request. A picture is turned as its EXIF data says, what is
transparent becomes white, a mask becomes grey; colour profiles are not applied. An animated file is
refused: which of its pictures was meant cannot be known.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageOps, UnidentifiedImageError

from ditcast.v1 import generation_pb2 as pb
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.generation import ImageRole, InputImage
from ditcast_runtime.pictures import Pictures, Pixels
from ditcast_runtime.settings import Problem
from ditcast_service.translate.values import to_word

FORMATS = ("PNG", "JPEG", "WEBP")
"""What is decoded at all; Pillow knows many more, some of which open other files or run code."""


class ImageReader:
    """Decodes the pictures of requests, so many requests at a time."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._pool = ThreadPoolExecutor(config.encoder_threads, thread_name_prefix="decode")

    async def read(
        self, messages: Sequence[pb.InputImage], problems: list[Problem]
    ) -> tuple[tuple[InputImage, ...], Pictures | None]:
        """Decode all pictures, and add what is wrong with them.

        Gives them in the order of the request, and their pixels if nothing is wrong with any.
        """
        limit = self._config.max_input_images
        if not messages:
            return (), None
        if len(messages) > limit:
            problems.append(Problem("images", f"there are {len(messages)}; {limit} are allowed"))
            return (), None
        loop = asyncio.get_running_loop()
        images, pictures, found = await loop.run_in_executor(self._pool, self._read, messages)
        problems += found
        return images, pictures

    def _read(
        self, messages: Sequence[pb.InputImage]
    ) -> tuple[tuple[InputImage, ...], Pictures | None, list[Problem]]:
        problems: list[Problem] = []
        images: list[InputImage] = []
        decoded: list[Pixels] = []
        for index, message in enumerate(messages):
            role = _role(message, f"images[{index}].role", problems)
            try:
                pixels = decode(
                    message.data, mask=_is_mask(role, message), limit=self._config.max_input_pixels
                )
            except ValueError as error:
                problems.append(Problem(f"images[{index}].data", str(error)))
                pixels = Pixels(0, 0, "RGB", b"")
            decoded.append(pixels)
            images.append(_image(message, role, pixels))
        return tuple(images), None if problems else Pictures(decoded), problems


def decode(data: bytes, *, mask: bool, limit: int) -> Pixels:
    """Decode one picture of at most so many pixels.

    Raises:
        ValueError: It cannot be, with the reason as its text.
    """
    # Our own limit is checked right after the header is read; Pillow's would warn or raise first.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check(image, limit)
            turned = ImageOps.exif_transpose(image)
            plain = _flatten(turned).convert("L" if mask else "RGB")
    except (_Unfit, MemoryError):
        raise
    except UnidentifiedImageError as error:
        kinds = "it is empty" if not data else "it is no PNG, JPEG or WebP file"
        raise ValueError(kinds) from error
    except Exception as error:
        # Of damaged files Pillow raises what its parts happen to: struct.error, SyntaxError, ...
        raise ValueError(f"it cannot be decoded: {error}"[:200]) from error
    return Pixels(plain.width, plain.height, plain.mode, plain.tobytes())


class _Unfit(ValueError):
    """A picture that could be decoded and is not to be."""


def _check(image: Image.Image, limit: int) -> None:
    """Refuse before anything is decoded but the header."""
    if image.width * image.height > limit:
        size = f"{image.width}x{image.height}"
        raise _Unfit(f"it is {size}, {image.width * image.height} pixels; {limit} are allowed")
    if getattr(image, "is_animated", False):
        raise _Unfit("it is animated: send one picture of it")


def _flatten(image: Image.Image) -> Image.Image:
    """Put what is transparent on white, and bring 16 bits down to 8."""
    if image.mode.startswith("I"):
        # Of these, convert would keep the low bits and cut off what is over them.
        return image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _role(message: pb.InputImage, field: str, problems: list[Problem]) -> ImageRole:
    try:
        word = to_word(pb.InputImageRole.DESCRIPTOR, message.role)
    except KeyError:
        problems.append(Problem(field, f"this version knows no role {message.role}"))
        word = None
    return ImageRole(word or ImageRole.IMAGE)


def _is_mask(role: ImageRole, message: pb.InputImage) -> bool:
    return "mask" in message.parameter if message.parameter else role is ImageRole.MASK


def _image(message: pb.InputImage, role: ImageRole, pixels: Pixels) -> InputImage:
    return InputImage(
        role=role,
        parameter=message.parameter,
        width=pixels.width,
        height=pixels.height,
        mode=pixels.mode,
        size_bytes=len(message.data),
        sha256=hashlib.sha256(message.data).digest(),
    )
