"""The input pictures of the kinds that take some."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 80, 96


def picture(number: int = 0) -> Image.Image:
    """Give colours that change over the picture, others for each number."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 7 * number
    colours = np.stack([columns * 3, rows * 2, rows + columns], axis=-1)
    return Image.fromarray(colours.astype(np.uint8))


def encoded(number: int = 0) -> bytes:
    """Give it as a PNG."""
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()
