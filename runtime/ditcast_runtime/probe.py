"""What a pipeline does of itself, asked of the pipeline: by calls that are left before any step.

Pipelines that denoise make their noise in `prepare_latents`, to which they say the size that they
have settled on; how much noise it makes of which size tells in what units they can make sizes.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, NamedTuple

import torch

from ditcast_runtime.generation import FRAME_COUNTS

_SIDE = 128
"""A side that is a multiple of every unit that is tried."""
_UNITS = (1, 2, 4, 8, 16, 32, 64, 128)
_FRAMES = 25
"""Less one, a multiple of the usual steps."""
_PACKED = 3
"""Dimensions of packed latents: outputs, tokens and channels."""


class Extent(NamedTuple):
    """What a pipeline makes where nobody says a size, and in which units; None: it is not known."""

    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    unit: int | None = None
    """Pixels of a side by which it has to grow for there to be more latents."""
    latent: int | None = None
    """Pixels to a side of a latent; None: they are packed, each by itself a token."""
    num_frames_step: int = 1
    """Frames that one more frame of latents takes."""


class _Settled(BaseException):
    """Leaves the call; not an `Exception`, so that nothing in a pipeline takes it for a failure."""


class _Noise:
    """Stands in for `prepare_latents`: keeps what it is told, and goes no further."""

    def __init__(self, pipe: Any) -> None:
        self._make = pipe.prepare_latents
        self._signature = inspect.signature(self._make)
        self._told: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._told = dict(self._signature.bind(*args, **kwargs).arguments)
        raise _Settled

    def told(self, *names: str) -> int | None:
        """Give the first of these that it was told."""
        values = (self._told.get(name) for name in names)
        return next((value for value in values if isinstance(value, int)), None)

    def shape(self, **changed: int) -> torch.Size:
        """Give the shape of the noise for another size."""
        # Pictures take long to encode, and most pipelines make the noise without them as well.
        bare = {name: None for name in self._told if "image" in name}
        if bare:
            with contextlib.suppress(Exception):
                return self._shape({**self._told, **bare, **changed})
        return self._shape({**self._told, **changed})

    def _shape(self, arguments: dict[str, Any]) -> torch.Size:
        made = self._make(**arguments)
        noise = made[0] if isinstance(made, (tuple, list)) else made
        return torch.Size(noise.shape)


def find_extent(pipe: Any, arguments: dict[str, Any]) -> Extent:
    """Find what the pipeline makes of a call that says no size.

    Args:
        pipe: The pipeline.
        arguments: What its call needs besides.
    """
    usual = _settle(pipe, arguments)
    found = Extent()
    if usual is not None:
        found = Extent(usual.told("width"), usual.told("height"), usual.told(*FRAME_COUNTS))
    # Some have no usual size; all that take one take a small one as well.
    taken = inspect.signature(pipe.__call__).parameters
    frames = next((name for name in FRAME_COUNTS if name in taken), None)
    small = {"width": _SIDE, "height": _SIDE} | ({frames: _FRAMES} if frames else {})
    noise = _settle(pipe, {**arguments, **small}) if small.keys() <= taken.keys() else None
    if noise is None or noise.told("width") is None:
        return found
    with torch.inference_mode(), contextlib.suppress(Exception):
        found = _latents(found, noise, frames if frames and noise.told(frames) else None)
    return found


def _settle(pipe: Any, arguments: dict[str, Any]) -> _Noise | None:
    """Call the pipeline up to its noise; None: it makes none there, or the call failed."""
    if not hasattr(pipe, "prepare_latents"):
        return None
    noise = _Noise(pipe)
    pipe.prepare_latents = noise
    try:
        pipe(**arguments)
    except _Settled:
        return noise
    except Exception:  # noqa: BLE001 - what it raises says nothing here: the warm-up shows it
        return None
    finally:
        del pipe.prepare_latents
    return None


def _latents(found: Extent, noise: _Noise, frames: str | None) -> Extent:
    least = {frames: 1} if frames else {}
    one = noise.shape(**least)
    if frames:
        more = noise.shape(**{frames: _FRAMES}).numel() // one.numel() - 1
        found = found._replace(num_frames_step=(_FRAMES - 1) // more if more > 0 else 1)
    side = noise.told("width") or _SIDE
    if len(one) != _PACKED:
        found = found._replace(latent=side // one[-1])
    # Where a picture was fitted to the size already, no other size can be tried.
    with contextlib.suppress(Exception):
        found = found._replace(unit=_first_growth(noise, side, least))
    return found


def _first_growth(noise: _Noise, side: int, least: dict[str, int]) -> int | None:
    before = noise.shape(**least).numel()
    for more in _UNITS:
        if noise.shape(**least, width=side + more).numel() > before:
            return more
    return None
