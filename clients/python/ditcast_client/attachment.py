"""The events of one generation, across broken connections.

A stream that breaks without a word of the server itself says nothing about the generation, which
lives on. So the events are asked for again, after the last one that came, until the server has been
out of reach for too long. A server that no longer knows the generation has lost it with its
process: the request is sent again, under the same id and with the same content, which can never
render twice what the server still knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import grpc

from ditcast.v1.diffusion_service_pb2 import (
    GenerateRequest,
    GenerateResponse,
    WatchGenerationRequest,
    WatchGenerationResponse,
)
from ditcast.v1.generation_pb2 import GenerationEvent, Restarted
from ditcast_client.errors import (
    DitcastError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TransportBroken,
    Unavailable,
    from_rpc_error,
)
from ditcast_client.routes import Routes

if TYPE_CHECKING:
    from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceAsyncStub

    _Call: TypeAlias = (
        grpc.aio.UnaryStreamCall[GenerateRequest, GenerateResponse]
        | grpc.aio.UnaryStreamCall[WatchGenerationRequest, WatchGenerationResponse]
    )

_NEVER_ANSWERED_SECONDS: Final = 1.0
"""How long to try where the server has not answered once: it is likely not there at all."""

_END_SECONDS: Final = 1.0
"""How long to wait for the end of a call that has said all; it takes one way from the server."""

_log = logging.getLogger("ditcast_client")


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long, and how often, a server that cannot be reached is tried again. In seconds."""

    limit: float = 60.0
    """From the break of the connection to giving up; 0: no try at all."""
    first_delay: float = 0.1
    """It doubles with each try, and is spread by half its length either way."""
    max_delay: float = 5.0

    def delay(self, tries: int) -> float:
        """Give how long to wait after so many tries, each time another."""
        longest = min(self.max_delay, self.first_delay * 2.0 ** min(tries, 30))
        return longest * random.uniform(0.5, 1.5)  # noqa: S311 (against herds, not attackers)


class Attachment:
    """Follows one generation on a server.

    Attributes:
        request_id: The generation's id.
        after_sequence: The last event that is known.
    """

    def __init__(
        self,
        stub: DiffusionServiceAsyncStub,
        request_id: str,
        routes: Routes,
        patience: Patience,
        *,
        request: GenerateRequest | None = None,
        after_sequence: int = 0,
    ) -> None:
        """Ask for nothing yet.

        Args:
            stub: The server.
            request_id: The generation's id.
            routes: Where to keep which server has it.
            patience: How long to come back.
            request: What to generate; None: watch what somebody else asked for.
            after_sequence: The last event that is known already.
        """
        self.request_id = request_id
        self.after_sequence = after_sequence
        self._stub = stub
        self._routes = routes
        self._patience = patience
        self._request = request
        self._call: _Call | None = None
        self._answered = False
        self._sent = 0
        self._resending = False
        self._broken: TransportBroken | None = None
        self._broken_at = 0.0
        self._tries = 0
        self._dropped = asyncio.Event()

    async def events(self) -> AsyncGenerator[GenerationEvent, None]:
        """Give each event once, in order, and heartbeats; ends with the generation, or `drop`.

        Where the server lost the generation with its process, a `restarted` of our own, with the
        sequence 0, stands before the events of the new one.

        Raises:
            DitcastError: The generation did not succeed, or the server stays out of reach.
        """
        self._call = self._watch() if self._request is None else self._generate(self._request)
        while not self._dropped.is_set():
            try:
                # Servers send headers at once, before the first event.
                self._routes.learn(self.request_id, await self._call.initial_metadata())
                async for response in self._call:
                    if self._is_new(response.event):
                        yield response.event
                    if response.event.HasField("completed"):
                        await self._see_off()
                        return
            except grpc.aio.AioRpcError as err:
                lost = await self._come_back(from_rpc_error(err))
                if lost is not None:
                    yield lost
            else:
                return

    async def _see_off(self) -> None:
        """Let the call end by itself: dropped, it would be a cancelled one to proxies and traces.

        However it ends, and if it does not: everything is there.
        """
        if self._call is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._call.code(), _END_SECONDS)

    def drop(self) -> None:
        """End `events` wherever it waits."""
        self._dropped.set()
        if self._call is not None:
            self._call.cancel()

    def _generate(self, request: GenerateRequest) -> _Call:
        self._sent += 1
        return self._stub.Generate(request)

    def _watch(self) -> _Call:
        request = WatchGenerationRequest(
            request_id=self.request_id, after_sequence=self.after_sequence
        )
        return self._stub.WatchGeneration(request)

    def _is_new(self, event: GenerationEvent) -> bool:
        self._answered, self._resending = True, False
        self._broken, self._tries = None, 0
        if event.HasField("heartbeat"):
            return True
        if event.sequence <= self.after_sequence:
            return False
        self.after_sequence = event.sequence
        return True

    async def _come_back(self, error: DitcastError) -> GenerationEvent | None:
        """Set up the next call after an error; give what stands for a generation that was lost.

        Raises:
            DitcastError: This error, as coming back would not help, or has been tried for too long.
        """
        request, coming_back = self._request, self._broken is not None
        match error:
            case TransportBroken():
                await self._wait(error, 0.0)
            case ResourceExhausted(reason="READER_TIMEOUT"):
                pass  # Whoever watches was away for a while, and is back.
            case NotFound() if coming_back and request is not None:
                return self._send_again(request)
            case InvalidArgument() if coming_back and request is not None and _is_ahead(error):
                return self._send_again(request)
            case Unavailable() if self._resending and request is not None:
                if error.retry_delay is None:
                    raise error
                await self._wait(error, error.retry_delay.total_seconds())
                if not self._dropped.is_set():
                    self._call = self._generate(request)
                return None
            case _:
                raise error
        if not self._dropped.is_set():
            self._call = self._watch()
        return None

    def _send_again(self, request: GenerateRequest) -> GenerationEvent | None:
        seen, self.after_sequence = self.after_sequence, 0
        self._resending = True
        self._call = self._generate(request)
        if not seen:
            return None
        reason = "the server lost the generation with its process, and was asked again"
        restarted = Restarted(attempt=self._sent, reason=reason)
        event = GenerationEvent(request_id=self.request_id, restarted=restarted)
        event.time.GetCurrentTime()
        return event

    async def _wait(self, error: DitcastError, least: float) -> None:
        """Wait before the next try.

        Raises:
            DitcastError: This error, or the one that broke the connection: it was too long.
        """
        if self._broken is None and isinstance(error, TransportBroken):
            self._broken, self._broken_at, self._tries = error, time.monotonic(), 0
        delay = max(least, self._patience.delay(self._tries))
        self._tries += 1
        limit = self._patience.limit
        if not self._answered:
            limit = min(limit, _NEVER_ANSWERED_SECONDS)
        if time.monotonic() + delay - self._broken_at > limit:
            raise error
        if self._tries == 1 and self._answered:
            _log.warning("connection lost, trying again: %s", error.message)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._dropped.wait(), delay)


def _is_ahead(error: InvalidArgument) -> bool:
    """Say whether the server's log is shorter than what came: then it is another generation's."""
    return any(violation.field == "after_sequence" for violation in error.field_violations)
