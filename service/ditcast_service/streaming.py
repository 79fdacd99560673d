"""Passes the log of a generation on to one reader: the same for whoever asked and whoever watches.

Leaving closes this reader only; what becomes of the generation is decided where its readers are
counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, TypeVar, cast

from google.protobuf.message import Message
from grpc import aio

from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_runtime.errors import ReaderTimeout
from ditcast_runtime.events import Event, OutputChunk
from ditcast_runtime.generation import State
from ditcast_service.interceptors import record
from ditcast_service.translate.events import event_to_proto, heartbeat

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class Generation(Protocol):
    """What the RPCs need of a generation; the engine's own class has it."""

    @property
    def request_id(self) -> str:
        """Its id."""
        ...

    @property
    def state(self) -> State:
        """Where it is in its life."""
        ...

    @property
    def last_sequence(self) -> int:
        """The newest event's number; 0 before the first."""
        ...

    @property
    def steps_done(self) -> int:
        """Denoising steps that have ended."""
        ...

    def follow(self, after_sequence: int = 0) -> AsyncIterator[Event | None]:
        """Give the log's events, and None after each silence; closing it leaves the generation."""
        ...


class Stream:
    """The events of one RPC, on their way to a reader who may be slow, but not for ever."""

    def __init__(
        self,
        context: aio.ServicerContext[RequestT, ResponseT],
        response: Callable[[GenerationEvent], ResponseT],
        reader_timeout: float,
    ) -> None:
        async def write(event: GenerationEvent) -> None:
            await context.write(response(event))

        self._write = write
        self._reader_timeout = reader_timeout

    async def pass_on(self, generation: Generation, after_sequence: int = 0) -> None:
        """Pass the log on after a sequence, as fast as the reader takes it.

        Raises:
            ReaderTimeout: the reader took nothing for too long.
            RuntimeFailure: what ended the generation without a result.
        """
        line = record.get()
        # An async generator, as every `follow` is: closing it is how a reader leaves.
        events = cast("AsyncGenerator[Event | None]", generation.follow(after_sequence))
        async with aclosing(events):
            async for event in events:
                if event is None:
                    message = heartbeat(
                        generation.request_id, generation.last_sequence, generation.state
                    )
                else:
                    message = event_to_proto(generation.request_id, event)
                line.steps = generation.steps_done
                await self.send(message)
                if event is not None and isinstance(event.kind, OutputChunk):
                    line.output_bytes += len(event.kind.data)

    async def send(self, event: GenerationEvent) -> None:
        """Send one event; ReaderTimeout if the reader does not take it in time."""
        await taken(self._write(event), self._reader_timeout)


async def taken(write: Awaitable[None], seconds: float) -> None:
    """Wait until a reader has taken what is written; ReaderTimeout if it takes too long."""
    try:
        async with asyncio.timeout(seconds):
            await write
    except TimeoutError:
        raise ReaderTimeout from None
    line = record.get()
    line.first_event_at = line.first_event_at or time.monotonic()
