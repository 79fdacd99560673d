"""Compares the outputs of a generation with those of the same without a cache, where asked for.

The uncached one is a generation of its own that runs next, so that ranks, losses and time limits
are dealt with as ever. It begins when the outputs are on their way: only the last event waits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress

import structlog

from ditcast_runtime.accepted import Generation, Submission
from ditcast_runtime.errors import RuntimeFailure
from ditcast_runtime.events import (
    Completed,
    OutputChunk,
    OutputLikeness,
    RequestWarning,
    ShadowComparison,
)
from ditcast_runtime.generation import OutputFormat, OutputOptions
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.settings import CacheSettings, Disabled

log = structlog.get_logger()

_FOR_EVER = 1e9
"""Seconds of silence that nobody waits for."""


class NotComparable(Exception):
    """There is nothing to compare with, or nobody to compare for."""


class Shadows:
    """Brings generations to their end whose outputs are delivered: at once, or compared first."""

    def __init__(
        self, ledger: Ledger, pool: ThreadPoolExecutor, check_accepting: Callable[[], None]
    ) -> None:
        """Make it; `check_accepting` raises NotServing where nothing would take one up."""
        self._ledger = ledger
        self._pool = pool
        self._check_accepting = check_accepting
        self._tasks: set[asyncio.Task[None]] = set()

    async def idle(self) -> None:
        """Wait until everything that began has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def succeed(self, generation: Generation) -> None:
        """End a generation well, at once or when it is compared."""
        completed = generation.completed
        if completed is None or not generation.submission.shadow_comparison:
            self._ledger.succeed(generation)
            return
        task = asyncio.create_task(self._complete(generation, completed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _complete(self, generation: Generation, completed: Completed) -> None:
        began, found = time.monotonic(), None
        try:
            found = await self._compare(generation, completed)
        except (RuntimeFailure, NotComparable) as why:
            _warn(generation, str(why))
        except Exception:  # a bug of ours: the outputs are good, and stay so
            log.exception("the shadow comparison failed", request_id=generation.request_id)
            _warn(generation, "see the log of the server")
        generation.pixels = []
        now = time.monotonic()
        timings = dataclasses.replace(
            completed.timings, shadow=now - began, total=now - generation.accepted_at
        )
        generation.completed = dataclasses.replace(completed, shadow=found, timings=timings)
        self._ledger.succeed(generation)

    async def _compare(self, generation: Generation, completed: Completed) -> ShadowComparison:
        from ditcast_runtime.likeness import compare  # noqa: PLC0415 - see there

        self._check_accepting()
        shadow = self._ledger.admit_next(_submission(generation))
        try:
            uncached = await _outputs_unless_ended(shadow, generation)
        finally:
            self._ledger.cancel(shadow)
        if shadow.completed is None or shadow.revision != generation.revision:
            raise NotComparable("the configuration was changed meanwhile")
        parameters, loop = generation.parameters, asyncio.get_running_loop()
        outputs = []
        for index, (with_cache, without) in enumerate(
            zip(generation.pixels, uncached, strict=True)
        ):
            psnr, ssim = await loop.run_in_executor(
                self._pool, compare, without, with_cache, parameters.width, parameters.height
            )
            outputs.append(OutputLikeness(output_index=index, psnr=psnr, ssim=ssim))
        seconds = shadow.completed.timings.denoise
        return ShadowComparison(
            outputs=tuple(outputs),
            uncached_denoise=seconds,
            time_ratio=completed.timings.denoise / seconds,
        )


def _warn(generation: Generation, reason: str) -> None:
    message = f"it could not be made: {reason}"
    generation.log.append(RequestWarning(field="shadow_comparison", message=message))


def _submission(generation: Generation) -> Submission:
    """Ask for the same without a cache; nothing of it is for any reader but the comparison."""
    parameters = dataclasses.replace(
        generation.parameters,
        cache=CacheSettings(method=Disabled()),
        output=OutputOptions(format=OutputFormat.RAW_RGB8),
    )
    mine = generation.submission
    request_id = f"{generation.request_id}/shadow"
    return Submission(
        request_id=request_id,
        identity=mine.identity,
        client=mine.client,
        limits=mine.limits,
        digest=hashlib.sha256(request_id.encode()).digest(),
        parameters=parameters,
        pictures=mine.pictures,
        revision=generation.revision,
        settle=lambda: (parameters, ()),
        priority=mine.priority,
        keeps_result=False,
    )


async def _outputs_unless_ended(shadow: Generation, generation: Generation) -> list[bytes]:
    """Give the outputs of the one, unless the other ends before.

    Raises:
        NotComparable: it has ended: its time is up, it was cancelled or has no readers.
        RuntimeFailure: what ended the shadow without a result.
    """
    reading = asyncio.create_task(_outputs(shadow))
    ending = asyncio.create_task(_end(generation))
    try:
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            raise NotComparable("it has ended")
        return await reading
    finally:
        reading.cancel()
        ending.cancel()


async def _outputs(shadow: Generation) -> list[bytes]:
    found: dict[int, list[bytes | memoryview]] = {}
    async with aclosing(shadow.follow()) as events:
        async for event in events:
            if event is not None and isinstance(event.kind, OutputChunk):
                chunk = event.kind
                if chunk.offset == 0:
                    found[chunk.output_index] = []
                found[chunk.output_index].append(chunk.data)
    return [b"".join(found[index]) for index in sorted(found)]


async def _end(generation: Generation) -> None:
    """Wait for the end of a generation, as none of its readers."""
    with suppress(RuntimeFailure):
        async for _ in generation.log.follow(generation.last_sequence, _FOR_EVER):
            pass
