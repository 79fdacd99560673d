"""Learns from the warm-up how previews of the loaded pipeline are made, if they can be."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from ditcast_runtime.previews.clean import StepCall, foretells, tapped
from ditcast_runtime.previews.colours import CELLS, ColourMap, encode_chart
from ditcast_runtime.previews.layout import Layout, find_layout
from ditcast_runtime.previews.previewer import Decode, Previewer

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run of the warm-up showed."""

    call: StepCall
    """The last one."""
    final: torch.Tensor
    """The latents that it made."""
    values: torch.Tensor
    """What the decoder was given."""
    height: int
    """Of what it gave, in pixels."""
    decode: Decode


class Lesson:
    """Watches the pipeline run. All ranks learn the same, as a VAE may be split over them."""

    def __init__(self, pipe: Any, device: torch.device, *, parallel_vae: bool) -> None:
        self._pipe = pipe
        self._device = device
        self._parallel_vae = parallel_vae
        self._call: StepCall | None = None
        self._final: torch.Tensor | None = None
        self._run: _Run | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs meanwhile; a pipeline without a scheduler or a VAE shows nothing."""
        scheduler, vae = getattr(self._pipe, "scheduler", None), getattr(self._pipe, "vae", None)
        if not (hasattr(scheduler, "step") and hasattr(vae, "decode")):
            yield
            return
        with tapped(scheduler, self._take, self._made), _decoding(vae, self._decoded):
            yield

    def previewer(self) -> Previewer | None:
        """Give what makes previews; None: they cannot be made of this pipeline."""
        run, self._run, self._call, self._final = self._run, None, None, None
        if run is None or not foretells(self._pipe.scheduler, run.call, run.final):
            return None
        layout = find_layout(run.final, run.values, run.height)
        if layout is None:
            return None
        colours = self._colours(layout, run.values.ndim)
        # The hooks of an offloaded VAE would send the transformer away in the midst of its steps.
        alone = not self._parallel_vae and not hasattr(self._pipe.vae, "_hf_hook")
        if colours is None and not alone:
            return None
        return Previewer(
            scheduler=self._pipe.scheduler,
            layout=layout,
            colours=colours,
            decode=run.decode if alone else None,
            frames=run.values.ndim == 5,  # noqa: PLR2004 - with an axis of frames
        )

    def _colours(self, layout: Layout, axes: int) -> ColourMap | None:
        side = CELLS * layout.pixels // layout.patch
        try:
            return encode_chart(self._pipe.vae, axes, side, self._device)
        except (RuntimeError, ValueError, TypeError, AttributeError, StopIteration) as error:
            # An encoder that wants other input than a picture: then the decoder has to do.
            log.info("no colour map for previews", cause=str(error)[:200])
            return None

    def _take(self, call: StepCall) -> None:
        self._call = call

    def _made(self, result: Any) -> None:
        made = getattr(result, "prev_sample", None)
        self._final = result[0] if made is None else made

    def _decoded(self, values: torch.Tensor, height: int, decode: Decode) -> None:
        if self._call is not None and self._final is not None:
            self._run = _Run(self._call, self._final, values, height, decode)


@contextlib.contextmanager
def _decoding(vae: Any, seen: Callable[[torch.Tensor, int, Decode], None]) -> Iterator[None]:
    """Have `seen` know what the VAE is given to decode, the height of the result, and how to."""
    before = vae.__dict__.get("decode")
    inner = vae.decode
    watched = True

    @functools.wraps(inner)
    def decode(values: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        def again(others: torch.Tensor) -> torch.Tensor:
            return _picture(inner(others.to(values.dtype), *arguments, **keywords))

        result = inner(values, *arguments, **keywords)
        if watched:
            seen(values, _picture(result).shape[-2], again)
        return result

    vae.decode = decode
    try:
        yield
    finally:
        watched = False
        # Who wrapped it in the meantime keeps what it is.
        if vae.__dict__.get("decode") is decode:
            vae.__dict__.pop("decode")
            if before is not None:
                vae.decode = before


def _picture(decoded: Any) -> torch.Tensor:
    return decoded[0] if isinstance(decoded, tuple) else decoded.sample  # type: ignore[no-any-return]
