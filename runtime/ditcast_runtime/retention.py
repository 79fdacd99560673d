"""What is kept of generations that have ended, for how long, and where.

The newest results stay in memory, as many as fit; what is older, or larger, lies in files in the
engine's private folder. What the time, the count or the bytes do not allow is forgotten, the oldest
first; a result that cannot be kept is refused to later readers, while those of now get all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from ditcast_runtime.accepted import Generation
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import ResultNotKept
from ditcast_runtime.spill import SpillFile

log = structlog.get_logger()


class Retention:
    """Keeps ended generations within the configured bounds.

    Args:
        config: The bounds.
        folder: Where files may be made; private.
        forget: Called for each that is kept no longer.
    """

    def __init__(
        self, config: EngineConfig, folder: Path, forget: Callable[[Generation], None]
    ) -> None:
        self._config = config
        self._folder = folder
        self._forget = forget
        self._kept: dict[Generation, asyncio.TimerHandle] = {}
        self._spilling: asyncio.Task[None] | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes of outputs that are held in memory."""
        return sum(generation.log.memory_bytes for generation in self._kept)

    def keep(self, generation: Generation) -> None:
        """Take over a generation that has ended just now."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._config.retention, self._drop, generation)
        self._kept[generation] = timer
        if generation.log.output_bytes > self._config.retention_bytes:
            self._lose(generation, "it is larger than retention_bytes")
        self._bound()

    async def idle(self) -> None:
        """Wait until nothing is being written."""
        if self._spilling is not None:
            await self._spilling

    def _bound(self) -> None:
        """Forget the oldest while there are too many, or too many bytes; then move to disk."""
        total = sum(self._size(generation) for generation in self._kept)
        while self._kept and (
            len(self._kept) > self._config.retention_count or total > self._config.retention_bytes
        ):
            oldest = next(iter(self._kept))
            total -= self._size(oldest)
            self._drop(oldest)
        if self._excess() is not None and (self._spilling is None or self._spilling.done()):
            self._spilling = asyncio.create_task(self._spill())

    def _size(self, generation: Generation) -> int:
        return 0 if generation.log.lost else generation.log.output_bytes

    def _excess(self) -> Generation | None:
        """Give the oldest in memory, if there is more in memory than may be."""
        if self.memory_bytes <= self._config.retention_memory_bytes:
            return None
        return next(generation for generation in self._kept if generation.log.memory_bytes)

    async def _spill(self) -> None:
        """Move outputs to files, one generation after the other, until memory holds no more."""
        while (generation := self._excess()) is not None:
            pieces = generation.log.pieces()
            try:
                generation.log.move(await asyncio.to_thread(SpillFile, self._folder, pieces))
            except OSError as error:
                self._lose(generation, error.strerror or "its file cannot be written")

    def _lose(self, generation: Generation, cause: str) -> None:
        log.warning(
            "result not kept",
            request_id=generation.request_id,
            output_bytes=generation.log.output_bytes,
            cause=cause,
        )
        generation.log.lose(ResultNotKept(cause))

    def _drop(self, generation: Generation) -> None:
        timer = self._kept.pop(generation, None)
        if timer is not None:
            timer.cancel()
            self._forget(generation)
