"""Encoded outputs hold the pixels that were made."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image

from ditcast_runtime.generation import OutputFormat, OutputOptions, RawOutput
from ditcast_service.encoding import encode
from ditcast_service.videos import crf

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


def film(
    frames: int = 7, width: int = 50, height: int = 38
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Make a smooth film that moves, of sides that no block size divides."""
    time, rows, columns = np.mgrid[0:frames, 0:height, 0:width]
    return np.stack([rows * 5, columns * 4, rows + columns + time * 8], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("fps", [8.0, 23.976, 30.0])
def test_an_mp4_decodes_to_its_frames(fps: float) -> None:
    """As many, as large, at their rate, in the colours that they had."""
    pixels = film()
    raw = RawOutput(width=50, height=38, num_frames=7, fps=fps)
    output = encode(memoryview(pixels.tobytes()), raw, OutputOptions(format=OutputFormat.MP4))
    assert output.media_type == "video/mp4"
    with av.open(io.BytesIO(output.data), "r") as container:
        [stream] = container.streams.video
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 7)
        assert abs(float(stream.average_rate or 0) - fps) < 0.001
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    apart = np.stack(decoded).astype(float) - pixels
    assert 10 * np.log10(255**2 / np.mean(apart**2)) > 33


def test_an_mp4_has_the_same_bytes_each_time() -> None:
    """Whatever the memory of the process holds: what it did not write it must not read."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 120, 208, 3), np.uint8)
    raw = RawOutput(width=208, height=120, num_frames=20, fps=16.0)
    files = set()
    for size in (1, 2, 3):
        junk = [bytes(index for _ in range(size * 10_000)) for index in range(1, 9)]
        del junk
        options = OutputOptions(format=OutputFormat.MP4, quality=50)
        files.add(encode(memoryview(noise.tobytes()), raw, options).data)
    assert len(files) == 1


def test_quality_of_an_mp4_changes_its_size() -> None:
    """A higher quality is a smaller rate factor."""
    assert [crf(quality) for quality in (1, 50, 90, 100)] == [40, 28, 18, 15]
    pixels = memoryview(film().tobytes())
    raw = RawOutput(width=50, height=38, num_frames=7, fps=8.0)
    low, high = (
        len(encode(pixels, raw, OutputOptions(format=OutputFormat.MP4, quality=quality)).data)
        for quality in (10, 100)
    )
    assert low < high


def test_raw_frames_stand_one_after_the_other() -> None:
    """No header, no padding; latents are the file that they came as."""
    pixels = film().tobytes()
    raw = RawOutput(width=50, height=38, num_frames=7, fps=8.0)
    assert (
        encode(memoryview(pixels), raw, OutputOptions(format=OutputFormat.RAW_RGB8)).data == pixels
    )
    latents = OutputOptions(format=OutputFormat.LATENT_SAFETENSORS)
    assert encode(memoryview(b"file"), raw, latents).data == b"file"
