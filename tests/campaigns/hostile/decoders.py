"""The decoders that a stranger's bytes reach first, each with what it may answer; and seeds.

`python -m tests.campaigns.hostile.fuzz` feeds them by coverage, a test by chance.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from ditcast_runtime import channel, messages
from ditcast_runtime.channel import ChannelClosed, FrameBuffer
from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.pictures import Pixels
from ditcast_runtime.settings import (
    Acceleration,
    Problem,
    SettingsError,
    dump_acceleration,
    load_acceleration,
    parse_acceleration,
)
from ditcast_service.input_images import decode

MOST_PIXELS = 64 * 64
_DATA = Path(__file__).parents[2] / "data"
_FOLDER = Path(tempfile.gettempdir())
_UNIONS: tuple[Any, ...] = tuple(
    map(msgspec.msgpack.Decoder, (messages.Command, messages.Report, messages.Broadcast))
)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Something that bytes are given to; raises for none but a promise that it breaks."""

    seeds: Callable[[], Iterator[bytes]]
    feed: Callable[[bytes], None]


def settings(data: bytes) -> None:
    """Read a cache-dit file: refused with its problems, or read so that it can be written again."""
    problems: tuple[Problem, ...] = ()
    found: Acceleration | None
    for ending in (".yaml", ".json"):
        path = _FOLDER / f"ditcast-fuzz-{id(data)}{ending}"
        try:
            path.write_bytes(data)
            found = load_acceleration(path)
        except SettingsError as refused:
            problems = refused.problems
            found = None
        finally:
            path.unlink(missing_ok=True)
        if found is None:
            assert problems
            assert all(problem.reason for problem in problems)
        else:
            assert parse_acceleration(dump_acceleration(found)) == found


def frames(data: bytes) -> None:
    """Cut frames out of a stream that comes in pieces, and decode each as either side would."""
    size = 1 + (data[0] if data else 0)
    buffer, payloads = FrameBuffer(), list[bytes]()
    try:
        for begin in range(0, len(data), size):
            payloads += buffer.feed(data[begin : begin + size])
    except ChannelClosed:
        pass
    for payload in payloads:
        for decoder in _UNIONS:
            try:
                message = channel.unpack(decoder, payload)
            except ChannelClosed:
                continue
            channel.pack(message)


def pictures(data: bytes) -> None:
    """Decode a picture: refused with a reason, or of the size and mode that it says."""
    for mask in (False, True):
        pixels = None
        try:
            pixels = decode(data, mask=mask, limit=MOST_PIXELS)
        except ValueError as refused:
            reason = str(refused)
        else:
            reason = ""
            _check(pixels, mask=mask)
        assert bool(reason) is (pixels is None)


def _check(pixels: Pixels, *, mask: bool) -> None:
    assert pixels.mode == ("L" if mask else "RGB")
    assert 0 < pixels.width * pixels.height <= MOST_PIXELS
    assert len(pixels.data) == pixels.width * pixels.height * len(pixels.mode)


def _settings_seeds() -> Iterator[bytes]:
    yield (_DATA / "reference_cache_dit_config.yaml").read_bytes()
    yield (STARTER_MODEL / "cache.yaml").read_bytes()
    yield json.dumps(dump_acceleration(Acceleration())).encode()
    yield b"{cache_config: {cache_type: DBPrune, steps_computation_mask: [1, 0]}}"
    yield b"parallelism_config: {ulysses_size: auto, parallel_kwargs: {a: 1.0e-8}}\n"
    yield b"quantize_config: {quant_type: float8, components_to_quantize: {vae: {}}}\n"
    yield b"Fn_compute_blocks: 1\nenable_taylorseer: true\n"


def _frame_seeds() -> Iterator[bytes]:
    yield channel.pack(messages.Shutdown(epoch=1))
    yield channel.pack(messages.Cancel(epoch=1, number=2)) * 2
    yield channel.pack(messages.Alive(epoch=1, rank=0))
    yield channel.pack(messages.WarmingUp(epoch=2**63, rank=-1))
    nested = b"\x81\xa1x" * 2_000 + b"\xc0"
    yield len(nested).to_bytes(4, "big") + nested
    # A known kind, and under a key that nobody reads what no recursion could skip.
    deep = msgspec.msgpack.encode({"type": "Shutdown", "epoch": 1})
    deep = b"\x83" + deep[1:] + b"\xa1x" + b"\x91" * 5_000 + b"\xc0"
    yield len(deep).to_bytes(4, "big") + deep
    yield b"\xff\xff\xff\xff"


def _picture_seeds() -> Iterator[bytes]:
    for kind in ("PNG", "JPEG", "WEBP"):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            Image.effect_noise((16, 8), 60).convert(mode).save(file, kind)
            yield file.getvalue()
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (4, 4)).save(file, "PNG", exif=exif.tobytes())
    yield file.getvalue()
    # Found by the fuzzer: cut off where Pillow does not look for it.
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG", exif=b"MM\0*")
    yield file.getvalue()


DECODERS = {
    "settings": Decoder(_settings_seeds, settings),
    "frames": Decoder(_frame_seeds, frames),
    "pictures": Decoder(_picture_seeds, pictures),
}
