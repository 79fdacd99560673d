"""Makes the previews of one generation after another, on rank 0.

Rank 0 is alone with it: nothing here may wait for another rank.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from ditcast_runtime.generation import Parameters, PreviewOptions
from ditcast_runtime.previews.clean import StepCall, clean_latents, tapped
from ditcast_runtime.previews.colours import ColourMap, first_frame, shrunk
from ditcast_runtime.previews.layout import Layout

log = structlog.get_logger()

Decode = Callable[[torch.Tensor], torch.Tensor]
"""Has the VAE make pictures, from -1 to 1, of what it decodes."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """Small pictures of what the outputs would be: 8-bit RGB rows from the top."""

    step: int
    count: int
    width: int
    height: int
    pixels: bytes


@dataclass(frozen=True, slots=True)
class _Underway:
    """A sketch on its way from the device."""

    step: int
    pixels: torch.Tensor
    arrived: torch.cuda.Event | None
    """None: it is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Previewer:
    """How previews of the loaded pipeline are made."""

    scheduler: Any
    layout: Layout
    colours: ColourMap | None
    """None: the VAE decodes them."""
    decode: Decode | None
    """None: it cannot be called on one rank, in the midst of a generation."""
    frames: bool
    """Whether the VAE decodes frames."""

    def draw(
        self, call: StepCall, parameters: Parameters, options: PreviewOptions
    ) -> torch.Tensor | None:
        """Give (pictures, height, width, 3) as bytes, on the device; None: it is not known how."""
        latents = clean_latents(self.scheduler, call)
        width, height = parameters.width, parameters.height
        values = None if latents is None else self.layout.decoder_values(latents, width, height)
        if values is None:
            return None
        longest = min(options.max_side, max(width, height))
        if self.colours is not None:
            picture = self.colours.colours(values, longest)
        else:
            picture = self._decoded(values, longest)
        return picture.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def _decoded(self, values: torch.Tensor, longest: int) -> torch.Tensor:
        """Have the VAE decode a shrunken picture, which takes as much less."""
        assert self.decode is not None  # noqa: S101 - one of both is there
        small = shrunk(values, max(1, longest * self.layout.patch // self.layout.pixels))
        with torch.no_grad():
            picture = self.decode(small.unsqueeze(2) if self.frames else small)
        return shrunk(first_frame(picture).float() / 2 + 0.5, longest).clamp(0, 1)


class Previewing:
    """The previews of one generation: enter it around the pipeline's call."""

    def __init__(
        self,
        previewer: Previewer,
        parameters: Parameters,
        options: PreviewOptions,
        send: Callable[[Sketch], None],
        place: tuple[int, int] = (0, 1),
    ) -> None:
        """Make it; `place` is the generation's in its batch, and the size of that."""
        self.seconds = 0.0
        """What they took of this thread's time."""
        self._previewer = previewer
        self._parameters = parameters
        self._options = options
        self._send = send
        self._place = place
        self._call: StepCall | None = None
        self._underway: _Underway | None = None
        self._failed = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """See what the scheduler is given meanwhile; nothing of it is held afterwards."""
        try:
            with tapped(self._previewer.scheduler, self._take):
                yield
        finally:
            self._call = self._underway = None

    def step_ended(self, step: int) -> None:
        """Send the preview of a step that has one; on a device with what ran ahead of it."""
        began = time.perf_counter()
        self._pass_on(wait=False)
        due = step % self._options.every_n_steps == 0
        if due and not self._failed and self._call is not None:
            self._draw(step, self._call)
        self._pass_on(wait=False)
        self.seconds += time.perf_counter() - began

    def denoising_ended(self) -> None:
        """Send what is still on its way."""
        began = time.perf_counter()
        self._pass_on(wait=True)
        self.seconds += time.perf_counter() - began

    def _take(self, call: StepCall) -> None:
        self._call = call

    def _draw(self, step: int, call: StepCall) -> None:
        try:
            own = call.rows(*self._place)
            pixels = self._previewer.draw(own, self._parameters, self._options)
            if pixels is None:
                log.warning("no previews: the latents do not lie as in the warm-up", step=step)
        except RuntimeError as error:  # torch's own, memory that does not suffice among them
            # The generation can do without; and no rank waits for this one meanwhile.
            log.warning("no more previews of this generation", step=step, exc_info=error)
            pixels = None
        if pixels is None:
            self._failed = True
        elif pixels.device.type == "cuda":
            # Never waited for at a step: that would drain the queue of the device.
            there = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            there.copy_(pixels, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._underway = _Underway(step, there, event)
        else:
            self._underway = _Underway(step, pixels, None)

    def _pass_on(self, *, wait: bool) -> None:
        underway = self._underway
        if underway is None:
            return
        if underway.arrived is not None:
            if wait:
                underway.arrived.synchronize()
            elif not underway.arrived.query():
                return
        self._underway = None
        count, height, width, _ = underway.pixels.shape
        self._send(Sketch(underway.step, count, width, height, underway.pixels.numpy().tobytes()))
