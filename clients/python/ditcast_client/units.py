"""Times and sizes as people read them."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration

_MINUTE: Final = 60


def duration_text(duration: Duration) -> str:
    """Give a duration with as many digits as are of use."""
    return seconds_text(duration.ToTimedelta().total_seconds())


def seconds_text(seconds: float) -> str:
    """Give seconds with as many digits as are of use."""
    if seconds >= _MINUTE:
        return f"{seconds // _MINUTE:.0f} min {seconds % _MINUTE:.0f} s"
    if seconds >= 1 or not seconds:
        return f"{seconds:.3g} s"
    return f"{seconds * 1000:.3g} ms"


def bytes_text(count: int) -> str:
    """Give a number of bytes in the unit that suits it."""
    size, units = float(count), iter(("bytes", "KiB", "MiB", "GiB"))
    unit = next(units)
    for larger in units:
        if size < 1024:  # noqa: PLR2004
            break
        size, unit = size / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
