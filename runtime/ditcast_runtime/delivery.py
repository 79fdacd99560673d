"""From pixels to events: encode, hash, cut into chunks, complete; while the ranks run the next."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from ditcast_runtime.accepted import Generation
from ditcast_runtime.errors import PipelineFailed, RuntimeFailure
from ditcast_runtime.events import Completed, OutputChunk, PromptUse, cache_report
from ditcast_runtime.generation import (
    EncodedOutput,
    OutputDigest,
    OutputOptions,
    RawOutput,
    Receipt,
)
from ditcast_runtime.group import ReceivedOutput
from ditcast_runtime.messages import Ended
from ditcast_runtime.timings import Measured, Starts, timings_of

log = structlog.get_logger()

Encode = Callable[[memoryview, RawOutput, OutputOptions], EncodedOutput]
"""Encodes one output: frames of 8-bit RGB rows from top to bottom, or latents as they are."""


@dataclass(slots=True)
class RunRecord:
    """What the ranks reported about one generation."""

    sigmas: tuple[float, ...] = ()
    prepare_seconds: float = 0.0
    encode_prompt_seconds: float = 0.0
    prompts: PromptUse = field(default_factory=PromptUse)
    output: ReceivedOutput | None = None
    ended: list[Ended] = field(default_factory=list)

    def discard_output(self) -> None:
        """Free the pixels that nobody will encode."""
        if self.output is not None:
            os.close(self.output.descriptor)
            self.output = None


@dataclass(slots=True)
class Place:
    """The place of what one call of the pipeline made: outputs of one generation, or of a batch."""

    free: Callable[[], None]
    outputs: int
    """Generations whose outputs are not delivered yet."""

    def delivered(self) -> None:
        """Give the place back once nothing of the call is in memory any more."""
        self.outputs -= 1
        if self.outputs == 0:
            self.free()


@dataclass(frozen=True, slots=True)
class Order:
    """One output to deliver, and whom to tell how it went."""

    generation: Generation
    run: RunRecord
    output: ReceivedOutput
    receipt: Callable[[tuple[OutputDigest, ...]], Receipt]
    succeeded: Callable[[Generation], None]
    failed: Callable[[Generation, RuntimeFailure], None]
    place: Place


class Delivery:
    """Encodes outputs in threads.

    At most `places` are in memory, those being made too: a slow encoder is back-pressure on the
    ranks instead of a growing heap.
    """

    def __init__(
        self,
        encode: Encode,
        pool: ThreadPoolExecutor,
        chunk_bytes: int,
        starts: Starts,
        places: int,
    ) -> None:
        self._encode = encode
        self._pool = pool
        self._chunk_bytes = chunk_bytes
        self._starts = starts
        self._places = asyncio.Semaphore(places)
        self._tasks: set[asyncio.Task[None]] = set()

    async def place(self) -> None:
        """Wait until one more output may be alive; `begin` or `free` gives the place back."""
        await self._places.acquire()

    @property
    def full(self) -> bool:
        """Whether `place` would wait."""
        return self._places.locked()

    def free(self) -> None:
        """Give back a place that no output came for."""
        self._places.release()

    def begin(self, order: Order) -> None:
        """Deliver in the background; the place is given back when the pixels are gone."""
        task = asyncio.create_task(self._deliver(order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def idle(self) -> None:
        """Wait until everything that began is delivered."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self, order: Order) -> None:
        try:
            await self._encode_all(order)
        except Exception as error:  # whatever an encoder raises must end this generation alone
            error_id = uuid.uuid4().hex
            log.exception("encoding failed", error_id=error_id)
            steps = order.generation.steps_done
            order.failed(order.generation, PipelineFailed(error_id, type(error).__name__, steps))
            return
        finally:
            order.run.discard_output()
            order.place.delivered()
        order.succeeded(order.generation)

    async def _encode_all(self, order: Order) -> None:
        began = time.monotonic()
        received = order.output
        message = received.message
        size = message.size_bytes
        parameters = order.generation.parameters
        raw = RawOutput(
            width=message.width,
            height=message.height,
            num_frames=message.num_frames,
            fps=parameters.fps,
        )
        loop = asyncio.get_running_loop()
        digests = []
        with (
            mmap.mmap(received.descriptor, size * message.count, prot=mmap.PROT_READ) as memory,
            memoryview(memory) as pixels,
        ):
            # All at once into the pool, taken in order: each is sent as soon as it is ready.
            jobs = [
                loop.run_in_executor(
                    self._pool,
                    self._encode_one,
                    pixels[index * size : (index + 1) * size],
                    raw,
                    parameters.output,
                )
                for index in range(message.count)
            ]
            for index, job in enumerate(jobs):
                digests.append(self._send(order.generation, index, *(await job)))
            if order.generation.submission.shadow_comparison:
                # Copied, as the place for these is given back before they are compared.
                order.generation.pixels = [
                    bytes(pixels[index * size : (index + 1) * size])
                    for index in range(message.count)
                ]
        self._complete(order, tuple(digests), time.monotonic() - began)

    def _encode_one(
        self, pixels: memoryview, raw: RawOutput, options: OutputOptions
    ) -> tuple[EncodedOutput, bytes]:
        with pixels:
            encoded = self._encode(pixels, raw, options)
        return encoded, hashlib.sha256(encoded.data).digest()

    def _send(
        self, generation: Generation, index: int, encoded: EncodedOutput, sha256: bytes
    ) -> OutputDigest:
        data = memoryview(encoded.data)
        for offset in range(0, len(data), self._chunk_bytes):
            generation.log.append(
                OutputChunk(
                    output_index=index,
                    media_type=encoded.media_type,
                    total_bytes=len(data),
                    offset=offset,
                    data=data[offset : offset + self._chunk_bytes],
                )
            )
        return OutputDigest(
            output_index=index,
            media_type=encoded.media_type,
            size_bytes=len(data),
            sha256=sha256,
        )

    def _complete(
        self, order: Order, digests: tuple[OutputDigest, ...], encode_seconds: float
    ) -> None:
        generation, run = order.generation, order.run
        ended = sorted(run.ended, key=lambda report: report.rank)
        # Rank 0's, as the preparation's: stages of one rank add up.
        first = ended[0]
        measured = Measured(
            prepare=run.prepare_seconds,
            encode_prompt=run.encode_prompt_seconds,
            denoise=first.denoise_seconds,
            decode=first.decode_seconds,
            encode=encode_seconds,
            previews=first.preview_seconds,
        )
        generation.completed = Completed(
            receipt=order.receipt(digests),
            timings=timings_of(generation, measured, self._starts, time.monotonic()),
            prompts=run.prompts,
            cache=cache_report(generation.steps),
            memory=tuple(report.memory for report in ended),
        )
