"""From sketches to events: previews are encoded in threads while the ranks go on.

Only the newest of each generation counts: what comes while another is being encoded takes the place
of what waited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from ditcast_runtime import events
from ditcast_runtime.accepted import Generation
from ditcast_runtime.generation import State
from ditcast_runtime.messages import Preview

log = structlog.get_logger()

EncodePreview = Callable[[bytes, tuple[int, int], tuple[int, int]], bytes]
"""Encodes one picture as a JPEG: 8-bit RGB rows from the top, their width and height, and those
wanted."""


class PreviewDelivery:
    """Encodes previews, one report at a time."""

    def __init__(self, encode: EncodePreview, pool: ThreadPoolExecutor) -> None:
        self._encode = encode
        self._pool = pool
        self._newest: dict[Generation, Preview] = {}
        self._task: asyncio.Task[None] | None = None

    def take(self, generation: Generation, report: Preview) -> None:
        """Put the pictures into the generation's log as soon as they are encoded."""
        self._newest[generation] = report
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._deliver())

    async def idle(self) -> None:
        """Wait until nothing is being encoded."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while self._newest:
            generation = next(iter(self._newest))
            report = self._newest.pop(generation)
            try:
                made = await loop.run_in_executor(self._pool, self._encode_all, generation, report)
            except Exception:  # whatever an encoder raises; the generation can do without
                log.exception("encoding a preview failed", step=report.step)
                continue
            # Of a run that was lost meanwhile, it would show what begins again.
            if generation.state is State.RUNNING and generation.number == report.number:
                for preview in made:
                    generation.log.append(preview)

    def _encode_all(self, generation: Generation, report: Preview) -> list[events.Preview]:
        """Encode the picture of each output, in an encoder's thread."""
        parameters, options = generation.parameters, generation.submission.previews
        wanted = _size(parameters.width, parameters.height, options.max_side)
        length = report.width * report.height * 3
        return [
            events.Preview(
                step=report.step,
                output_index=index,
                media_type="image/jpeg",
                width=wanted[0],
                height=wanted[1],
                data=self._encode(
                    report.pixels[index * length : (index + 1) * length],
                    (report.width, report.height),
                    wanted,
                ),
            )
            for index in range(report.count)
        ]


def _size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Give width and height of a preview: those of the output, or as much smaller as asked for."""
    share = min(1.0, max_side / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))
