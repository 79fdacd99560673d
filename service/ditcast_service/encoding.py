"""Pixels become files here, in the service's threads, while the ranks run the next generation.

The levels were chosen by measurement on a 1664x928 picture with photographic noise: PNG level 1
took half the time of level 6 for a file 13 % larger.
"""

from __future__ import annotations

import io
from typing import cast

from PIL import Image

from ditcast_runtime.generation import EncodedOutput, OutputFormat, OutputOptions, RawOutput

PNG_COMPRESS_LEVEL = 1
WEBP_METHOD = 2
FULL_CHROMA_QUALITY = 90
"""From this JPEG quality on, colour is kept at full resolution: thin coloured edges stay sharp."""

MEDIA_TYPES = {
    OutputFormat.PNG: "image/png",
    OutputFormat.JPEG: "image/jpeg",
    OutputFormat.WEBP: "image/webp",
    OutputFormat.RAW_RGB8: "application/octet-stream",
    OutputFormat.MP4: "video/mp4",
    OutputFormat.LATENT_SAFETENSORS: "application/octet-stream",
}


def encode(data: memoryview, raw: RawOutput, options: OutputOptions) -> EncodedOutput:
    """Encode one output; the result shares no memory with `data`, which may be freed after.

    Args:
        data: The frames one after the other, RGB, 8 bits each, rows from the top without padding;
            or latents, as a file. Only read.
        raw: How they lie.
        options: Format and quality. RAW_RGB8 and LATENT_SAFETENSORS are `data` as it is.

    Raises:
        ValueError: `data` is of another length than `raw` says.
    """
    media_type = MEDIA_TYPES[options.format]
    if options.format is OutputFormat.LATENT_SAFETENSORS:
        return EncodedOutput(media_type=media_type, data=bytes(data))
    frames = raw.num_frames or 1
    if data.nbytes != raw.width * raw.height * frames * 3:
        raise ValueError(f"{data.nbytes} bytes are no {frames} of {raw.width}x{raw.height} in RGB")
    if options.format is OutputFormat.RAW_RGB8:
        return EncodedOutput(media_type=media_type, data=bytes(data))
    if options.format is OutputFormat.MP4:
        # Only now: FFmpeg takes a twelfth of the imports before which no rank is started.
        from ditcast_service.videos import encode_mp4  # noqa: PLC0415

        return EncodedOutput(media_type=media_type, data=encode_mp4(data, raw, options.quality))
    return encode_picture(data, raw.width, raw.height, options)


def encode_picture(
    pixels: memoryview, width: int, height: int, options: OutputOptions
) -> EncodedOutput:
    """Encode one picture; the result shares no memory with `pixels`, which may be freed after.

    Args:
        pixels: RGB, 8 bits each, rows from the top without padding; only read.
        width: Pixels of a row.
        height: Rows.
        options: PNG, JPEG or WebP, and the quality of those two.
    """
    # Pillow reads any buffer; its types name fewer. It unpacks to four bytes a pixel: one copy.
    buffer = cast("bytes", pixels)
    picture = Image.frombuffer("RGB", (width, height), buffer, "raw", "RGB", 0, 1)
    file = io.BytesIO()
    match options.format:
        case OutputFormat.PNG:
            picture.save(file, "PNG", compress_level=PNG_COMPRESS_LEVEL)
        case OutputFormat.JPEG:
            subsampling = "4:4:4" if options.quality >= FULL_CHROMA_QUALITY else "4:2:0"
            picture.save(file, "JPEG", quality=options.quality, subsampling=subsampling)
        case OutputFormat.WEBP:
            picture.save(file, "WEBP", quality=options.quality, method=WEBP_METHOD)
    return EncodedOutput(media_type=MEDIA_TYPES[options.format], data=file.getvalue())
