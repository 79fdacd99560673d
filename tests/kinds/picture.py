"""The input picture of the kinds that take one."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 80, 96


def picture() -> Image.Image:
    """Give colours that change over the picture."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    colours = np.stack([columns * 3, rows * 2, rows + columns], axis=-1)
    return Image.fromarray(colours.astype(np.uint8))


def encoded() -> bytes:
    """Give it as a PNG."""
    file = io.BytesIO()
    picture().save(file, "PNG")
    return file.getvalue()
