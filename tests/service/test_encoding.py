"""Encoded outputs hold the pixels that were made."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ditcast_runtime.generation import OutputFormat, OutputOptions, RawOutput
from ditcast_service.encoding import encode

WIDTH, HEIGHT = 48, 32
RAW = RawOutput(width=WIDTH, height=HEIGHT)


@pytest.fixture
def pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Make a smooth picture, so that lossy formats stay close."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([rows * 5, columns * 4, rows + columns], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("format_", "media_type", "tolerance"),
    [
        (OutputFormat.PNG, "image/png", 0),
        (OutputFormat.JPEG, "image/jpeg", 12),
        (OutputFormat.WEBP, "image/webp", 24),
    ],
)
def test_an_encoded_picture_decodes_to_its_pixels(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    format_: OutputFormat,
    media_type: str,
    tolerance: int,
) -> None:
    """PNG is exact; JPEG and WebP are close; the media type says which it is."""
    output = encode(memoryview(pixels.tobytes()), RAW, OutputOptions(format=format_))
    assert output.media_type == media_type
    decoded = np.asarray(Image.open(io.BytesIO(output.data)).convert("RGB")).astype(int)
    assert decoded.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(decoded - pixels).max() <= tolerance


def test_raw_is_the_pixels_as_they_are(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> None:
    """Raw output has no header, and outlives the memory that it came from."""
    memory = bytearray(pixels.tobytes())
    options = OutputOptions(format=OutputFormat.RAW_RGB8)
    output = encode(memoryview(memory), RAW, options)
    memory[:] = bytes(len(memory))
    assert output.data == pixels.tobytes()
    assert output.media_type == "application/octet-stream"


def test_quality_changes_the_size() -> None:
    """A higher quality keeps more."""
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8).tobytes()
    sizes = [
        len(
            encode(
                memoryview(noise),
                RAW,
                OutputOptions(format=OutputFormat.JPEG, quality=quality),
            ).data
        )
        for quality in (10, 50, 95)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_pixels_of_another_size_are_a_bug() -> None:
    """A picture is never padded or cut to fit."""
    with pytest.raises(ValueError, match="no 1 of 2x2"):
        encode(memoryview(bytes(11)), RawOutput(width=2, height=2), OutputOptions())
