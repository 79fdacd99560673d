"""Whether two sides made the same pictures, and if not, how far they are from each other."""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ditcast_runtime.likeness import psnr


def digest(png: bytes) -> str:
    """Give the SHA-256 of a picture's RGB bytes."""
    return hashlib.sha256(_pixels(png).tobytes()).hexdigest()


def distance(png: bytes, other: bytes) -> float:
    """Give the PSNR of two pictures in dB; infinite if every pixel is the same."""
    return math.inf if digest(png) == digest(other) else psnr(_pixels(png), _pixels(other))


def describe(png: bytes) -> str:
    """Say what a picture is, as far as it takes no looking at it."""
    pixels = _pixels(png)
    height, width, _ = pixels.shape
    kind = "a picture" if pixels.any() else "a black picture"
    return f"{kind} of {width}x{height}"


def _pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))
