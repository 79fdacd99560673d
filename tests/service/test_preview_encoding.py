"""Previews are JPEG files of the size that was asked for, and never over their bound."""

from __future__ import annotations

import io
import random

from PIL import Image

from ditcast_service.preview_encoding import MAX_BYTES, encode_preview


def test_a_sketch_is_scaled_up_to_the_preview() -> None:
    """Colours stay, the size is the one wanted."""
    picture = Image.open(io.BytesIO(encode_preview(b"\xff\x00\x00" * 64, (8, 8), (100, 60))))
    assert (picture.format, picture.size) == ("JPEG", (100, 60))
    red, green, blue = picture.convert("RGB").getpixel((50, 30))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15


def test_the_largest_preview_of_noise_keeps_to_the_bound() -> None:
    """Nothing compresses worse."""
    noise = random.Random(0).randbytes(1024 * 1024 * 3)  # noqa: S311 (a picture)
    assert len(encode_preview(noise, (1024, 1024), (1024, 1024))) <= MAX_BYTES
