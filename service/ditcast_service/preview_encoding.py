"""Sketches become previews here, in the service's threads: scaled up, and as JPEG."""

from __future__ import annotations

import io

from PIL import Image

MAX_BYTES = 256 * 2**10
"""The contract's bound; only large and noisy previews come near it."""

_QUALITIES = (80, 60, 40, 20, 5)


def encode_preview(pixels: bytes, size: tuple[int, int], wanted: tuple[int, int]) -> bytes:
    """Encode one picture as a JPEG of `MAX_BYTES` or less.

    Args:
        pixels: RGB, 8 bits each, rows from the top.
        size: Their width and height.
        wanted: Width and height of the preview.
    """
    picture = Image.frombytes("RGB", size, pixels)
    if size != wanted:
        picture = picture.resize(wanted, Image.Resampling.BICUBIC)
    encoded = (_jpeg(picture, quality) for quality in _QUALITIES)
    return next(data for data in encoded if len(data) <= MAX_BYTES)


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()
