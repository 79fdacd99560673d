"""What becomes of input pictures before a rank sees them; which are refused, and by what name."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image

from ditcast.v1 import generation_pb2 as pb
from ditcast_runtime.messages import Picture
from ditcast_runtime.pictures import Pictures, build, read
from ditcast_runtime.settings import Problem
from ditcast_service.config import ServerConfig
from ditcast_service.input_images import ImageReader, decode

LIMIT = 4096
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Give a picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(first: tuple[int, ...] = RED, second: tuple[int, ...] = BLUE) -> Image.Image:
    """Make a picture of 8x4 whose left and right halves differ."""
    image = Image.new("RGB" if len(first) == 3 else "RGBA", (8, 4), first)
    image.paste(second, (4, 0, 8, 4))
    return image


def shown(data: bytes, *, mask: bool = False) -> Image.Image:
    """Decode a file."""
    pixels = decode(data, mask=mask, limit=LIMIT)
    return Image.frombytes(pixels.mode, (pixels.width, pixels.height), pixels.data)


def open_files() -> int:
    """Count what this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def refusal(data: bytes, limit: int = LIMIT) -> str:
    """Give why a file is refused."""
    with pytest.raises(ValueError, match=r".") as refused:
        decode(data, mask=False, limit=limit)
    return str(refused.value)


def test_lossless_files_keep_every_pixel() -> None:
    """PNG and lossless WebP are decoded to what was encoded."""
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert shown(file_of(halves(), kind, **options)).tobytes() == halves().tobytes()


def test_jpeg_is_decoded() -> None:
    """JPEG stays close, CMYK too."""
    for image in (halves(), halves().convert("CMYK")):
        left = shown(file_of(image, "JPEG", quality=95, subsampling=0)).getpixel((1, 1))
        assert isinstance(left, tuple)
        assert left[0] > 200
        assert left[2] < 60


def test_a_picture_is_turned_as_its_exif_data_says() -> None:
    """Orientation 6, as cameras write it: what is stored left is shown at the top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = shown(file_of(halves(), exif=exif.tobytes()))
    assert image.size == (4, 8)
    assert (image.getpixel((1, 1)), image.getpixel((1, 6))) == (RED, BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    """Alpha is not dropped: the colours under it are nothing that anybody has seen."""
    image = halves((255, 0, 0, 255), (0, 0, 255, 0)).convert(mode)
    opaque, clear = (shown(file_of(image)).getpixel((x, 1)) for x in (1, 6))
    assert opaque != WHITE
    assert clear == WHITE


def test_half_transparent_is_mixed_with_white() -> None:
    """The mix is the one that a viewer with a white page shows."""
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert shown(file_of(image)).getpixel((0, 0)) == (127, 127, 127)


def test_16_bits_become_8() -> None:
    """The high bits are kept: a grey in the middle stays one."""
    image = Image.new("I;16", (2, 2), 0x8000)
    assert shown(file_of(image)).getpixel((0, 0)) == (128, 128, 128)


def test_a_mask_has_one_channel() -> None:
    """Colours become their brightness, and what is transparent stays white."""
    mask = shown(file_of(halves((0, 0, 0, 255), (0, 0, 0, 0))), mask=True)
    assert mask.mode == "L"
    assert (mask.getpixel((1, 1)), mask.getpixel((6, 1))) == (0, 255)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    """The header alone says how large it is: the rest of this file is missing."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )
    # Pillow looks for the first row of pixels when it opens a file.
    png += (
        struct.pack(">I", 4)
        + b"IDAT"
        + bytes(4)
        + struct.pack(">I", zlib.crc32(b"IDAT" + bytes(4)))
    )
    assert "60000x60000, 3600000000 pixels; 4096 are allowed" in refusal(png)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Make a chunk of a PNG."""
    sum_of_it = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + sum_of_it


def webp(kind: bytes, data: bytes) -> bytes:
    """Make a WebP of one chunk, and one small picture."""
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data + file_of(halves(), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("exif", [b"MM\0*", b"MM\0*\0\0\0", b"II*\0\x08\0\0\0\xff\xff"])
def test_exif_that_is_cut_off_is_refused(exif: bytes) -> None:
    """Of which Pillow raises no error that it documents."""
    assert "cannot be decoded" in refusal(file_of(halves(), exif=exif))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_what_lies_beside_the_pixels_cannot_unpack_without_end(kind: bytes) -> None:
    """200 MiB of text, or of a colour profile, in 200 KiB: refused after the first of them."""
    packed = zlib.compress(b"a" * (200 * 2**20), 9)
    before = {b"zTXt": b"k\0\0", b"iCCP": b"k\0\0", b"iTXt": b"k\0\1\0\0\0"}[kind]
    png = file_of(halves())
    header = 8 + 25  # The signature and IHDR.
    bomb = png[:header] + chunk(kind, before + packed) + png[header:]
    tracemalloc.start()
    assert "cannot be decoded" in refusal(bomb)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 * 2**20


@pytest.mark.parametrize(
    "data",
    [
        webp(b"VP8X", bytes(4) + b"\xff\xff\x00" * 2),
        webp(b"VP8X", b"\x02\0\0\0" + b"\xff\xff\x00" * 2),
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9",
    ],
    ids=["WebP", "animated WebP", "JPEG"],
)
def test_headers_that_promise_more_than_is_allowed_are_refused(data: bytes) -> None:
    """65,536 pixels a side, in a file of some bytes: whoever reads the header first, refuses."""
    assert refusal(data)


def test_the_limit_counts_pixels() -> None:
    """One more than is allowed is refused, and as many as are allowed are not."""
    data = file_of(halves())
    assert shown(data).size == (8, 4)
    assert decode(data, mask=False, limit=32).width == 8
    assert "8x4, 32 pixels; 31 are allowed" in refusal(data, 31)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    """No part of a picture is taken for the whole."""
    noise = Image.effect_noise((32, 32), 90).convert("RGB")
    data = file_of(noise, kind)
    assert refusal(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animated_file_is_refused(kind: str) -> None:
    """Which of its pictures was meant cannot be known."""
    frames = [halves(), halves(BLUE, RED)]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "animated" in refusal(data)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PDF", "EPS", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    """Pillow knows them; that they are opened is what is to be prevented."""
    assert "no PNG, JPEG or WebP" in refusal(file_of(halves(), kind))


def test_no_picture_at_all_is_refused() -> None:
    """Neither nothing nor noise is a picture."""
    assert "empty" in refusal(b"")
    assert "no PNG, JPEG or WebP" in refusal(b"/etc/passwd")


async def test_every_wrong_picture_is_named() -> None:
    """All of them are tried, and each has its own place in the answer."""
    good = file_of(halves())
    problems: list[Problem] = []
    messages = [
        pb.InputImage(data=good),
        pb.InputImage(data=good[:40]),
        pb.InputImage(role=pb.InputImageRole.ValueType(9), data=b"x"),
    ]
    images, pictures = await ImageReader(ServerConfig()).read(messages, problems)
    assert [each.field for each in problems] == [
        "images[1].data",
        "images[2].role",
        "images[2].data",
    ]
    assert pictures is None
    assert [image.width for image in images] == [8, 0, 0]


async def test_too_many_pictures_are_not_even_decoded() -> None:
    """Their number is limited as well as their size."""
    problems: list[Problem] = []
    reader = ImageReader(ServerConfig(max_input_images=2))
    await reader.read([pb.InputImage(data=b"x")] * 3, problems)
    assert problems == [Problem("images", "there are 3; 2 are allowed")]


async def test_pixels_travel_as_they_are_and_are_given_back() -> None:
    """What the ranks build is what was decoded, and nothing is open when it is closed."""
    open_before = open_files()
    messages = [
        pb.InputImage(data=file_of(halves())),
        pb.InputImage(data=file_of(halves(BLUE, RED)), parameter="mask_image"),
    ]
    images, pictures = await ImageReader(ServerConfig()).read(messages, [])
    assert pictures is not None
    layout = [
        Picture(parameter=name, width=image.width, height=image.height, mode=image.mode)
        for name, image in zip(("image", "mask_image"), images, strict=True)
    ]
    assert pictures.size_bytes == 8 * 4 * 3 + 8 * 4
    built = build(layout, read(os.dup(pictures.descriptor), pictures.size_bytes))
    [image], [mask] = built["image"], built["mask_image"]
    assert image.tobytes() == halves().tobytes()
    assert mask.tobytes() == halves(BLUE, RED).convert("L").tobytes()
    pictures.close()
    pictures.close()
    assert open_files() == open_before


def test_pictures_that_nobody_closes_are_closed() -> None:
    """A caller who leaves while they are decoded leaves nothing open."""
    open_before = open_files()
    pictures = Pictures([decode(file_of(halves()), mask=False, limit=LIMIT)])
    assert open_files() == open_before + 1
    del pictures
    assert open_files() == open_before
