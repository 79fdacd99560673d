"""Frames become an MP4 file: H.264 as every player takes it, the same bytes each time."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from ditcast_runtime.generation import RawOutput

_PRESET = "medium"
_X264 = "threads=4:sliced-threads=0:lookahead-threads=1:mbtree=0"
"""Decides the bytes: with another number of threads x264 takes other decisions, and with mbtree it
reads memory that was never written, so that of ten runs six had bytes of their own."""

_BT709 = 1
"""FFmpeg's number for the colours of HD video, which players assume of anything unmarked."""


def encode_mp4(pixels: memoryview, raw: RawOutput, quality: int) -> bytes:
    """Encode the frames of one video.

    Args:
        pixels: The frames, 8-bit RGB; even sides, as colour is kept at half of them.
        raw: Sides, number of frames, and frames a second.
        quality: 1 to 100, see `crf`.
    """
    shape = (raw.num_frames or 1, raw.height, raw.width, 3)
    file = io.BytesIO()
    # Without the flag, the library's version would stand in the file.
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"crf": str(crf(quality)), "preset": _PRESET, "x264-params": _X264}
        stream = container.add_stream("libx264", _rate(raw.fps), options=options)
        stream.width, stream.height, stream.pix_fmt = raw.width, raw.height, "yuv420p"
        _mark_colours(stream.codec_context)
        for picture in np.frombuffer(pixels, np.uint8).reshape(shape):
            container.mux(stream.encode(_frame(picture)))
        container.mux(stream.encode(None))
    return file.getvalue()


def crf(quality: int) -> int:
    """Give x264's rate factor for a quality: 100 is 15, the default of 90 is 18, 1 is 40."""
    return round(40 - quality / 4)


def _rate(fps: float | None) -> Fraction:
    return Fraction(fps or 1.0).limit_denominator(1001)


def _frame(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return frame.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )


def _mark_colours(context: av.VideoCodecContext) -> None:
    context.colorspace = Colorspace.ITU709
    context.color_range = ColorRange.MPEG
    context.color_primaries = _BT709
    context.color_trc = _BT709
