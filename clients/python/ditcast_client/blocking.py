"""The blocking client: a thin façade over the asynchronous one, whose loop runs in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast.v1.capabilities_pb2 import Capabilities
from ditcast.v1.diffusion_service_pb2 import (
    Adapter,
    ConfigureResponse,
    GenerateRequest,
    ListAdaptersResponse,
    TuneRequest,
)
from ditcast.v1.generation_pb2 import (
    GenerationEvent,
    GenerationState,
    GenerationSummary,
    Receipt,
)
from ditcast.v1.tuning_pb2 import TuneEvent
from ditcast_client.access import Token
from ditcast_client.client import CONFIGURE_TIMEOUT, Client
from ditcast_client.fields import GenerateFields
from ditcast_client.generation import Generation
from ditcast_client.replaying import Replay
from ditcast_client.result import Result

_Value = TypeVar("_Value")


class _LoopThread:
    """An event loop in a thread of its own, and the way for other threads to run things on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_pass_over_stolen_wakeups)
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="ditcast-client", daemon=True
        )
        self._thread.start()

    def run(self, coroutine: Coroutine[object, object, _Value]) -> _Value:
        """Run a coroutine to its end; an interrupt of the waiting thread cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def stop(self) -> None:
        """Stop the loop and wait for its thread."""
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _pass_over_stolen_wakeups(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Report what goes wrong on the loop, apart from what gRPC does where there are several.

    All loops of a process share one wake-up socket of grpc.aio. Who comes second finds it empty,
    which is of no consequence and would fill the log of a caller with a loop of its own.
    """
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


class BlockingGeneration:
    """A generation for callers without an event loop; see `Generation`."""

    def __init__(self, generation: Generation, loop: _LoopThread) -> None:
        self.request_id = generation.request_id
        self._generation = generation
        self._loop = loop

    def __iter__(self) -> Iterator[GenerationEvent]:
        """Watch the events; leaving early cancels the generation."""
        events = aiter(self._generation)
        try:
            while (event := self._loop.run(_next(events))) is not None:
                yield event
        finally:
            self.close()

    def result(self) -> Result:
        """Wait for the end and give the result."""
        return self._loop.run(self._generation.result())

    def cancel(self) -> GenerationState.ValueType:
        """Cancel the generation and give the state that the cancel met."""
        return self._loop.run(self._generation.cancel())

    def close(self) -> None:
        """Leave the generation: cancel it, unless it has ended."""
        self._loop.run(self._generation.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class BlockingClient:
    """Talks to one server, from any thread; see `Client` for the arguments and the errors.

    For programs without an event loop: beside a loop that uses grpc.aio, gRPC fills the log of that
    loop with harmless BlockingIOErrors, so `Client` is the better choice there.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: Token | None = None,
        timeout: timedelta = timedelta(seconds=30),
        reattach: timedelta = timedelta(seconds=60),
    ) -> None:
        self._client = Client(
            address, credentials=credentials, token=token, timeout=timeout, reattach=reattach
        )
        self._loop = _LoopThread()

    def generate(
        self, request: GenerateRequest | None = None, **fields: Unpack[GenerateFields]
    ) -> BlockingGeneration:
        """Give the generation for a request, or for its fields as keyword arguments."""
        generation = self._loop.run(_on_loop(lambda: self._client.generate(request, **fields)))
        return BlockingGeneration(generation, self._loop)

    def watch(self, request_id: str, after_sequence: int = 0) -> BlockingGeneration:
        """Give a generation to be watched beside its other readers."""
        generation = self._loop.run(
            _on_loop(lambda: self._client.watch(request_id, after_sequence))
        )
        return BlockingGeneration(generation, self._loop)

    def list_generations(
        self, *, states: Collection[GenerationState.ValueType] = (), limit: int | None = None
    ) -> list[GenerationSummary]:
        """List the generations that the server knows, the newest first."""
        return self._loop.run(self._client.list_generations(states=states, limit=limit))

    def cancel(self, request_id: str) -> GenerationState.ValueType:
        """Cancel a generation and give the state that the cancel met."""
        return self._loop.run(self._client.cancel(request_id))

    def replay(self, receipt: Receipt, images: Iterable[bytes] = ()) -> Replay:
        """Make what a receipt names again; see `ditcast_client.replay`."""
        return self._loop.run(self._client.replay(receipt, images))

    def capabilities(self) -> Capabilities:
        """Ask what the loaded pipeline accepts."""
        return self._loop.run(self._client.capabilities())

    def configuration(self, revision: int | None = None) -> Configuration:
        """Ask for the current configuration, or one of the last 20."""
        return self._loop.run(self._client.configuration(revision))

    def configure(
        self,
        configuration: Configuration,
        *,
        update_mask: Sequence[str] = (),
        expected_revision: int | None = None,
        validate_only: bool = False,
        allow_reload: bool = False,
        timeout: timedelta = CONFIGURE_TIMEOUT,
    ) -> ConfigureResponse:
        """Change the acceleration while the server runs; see `Client.configure`."""
        return self._loop.run(
            self._client.configure(
                configuration,
                update_mask=update_mask,
                expected_revision=expected_revision,
                validate_only=validate_only,
                allow_reload=allow_reload,
                timeout=timeout,
            )
        )

    def list_adapters(self) -> ListAdaptersResponse:
        """Ask which adapters are loaded, and which files could be."""
        return self._loop.run(self._client.list_adapters())

    def load_adapter(
        self, name: str, file: str, *, timeout: timedelta = CONFIGURE_TIMEOUT
    ) -> Adapter:
        """Load a LoRA adapter on all ranks; see `Client.load_adapter`."""
        return self._loop.run(self._client.load_adapter(name, file, timeout=timeout))

    def unload_adapter(self, name: str, *, timeout: timedelta = CONFIGURE_TIMEOUT) -> None:
        """Remove an adapter from all ranks; see `Client.unload_adapter`."""
        self._loop.run(self._client.unload_adapter(name, timeout=timeout))

    def tune(self, request: TuneRequest) -> Iterator[TuneEvent]:
        """Have cache settings measured; see `Client.tune`."""
        events = self._client.tune(request)
        try:
            while (event := self._loop.run(_next(events))) is not None:
                yield event
        finally:
            self._loop.run(events.aclose())

    def close(self) -> None:
        """Leave what still runs, close the channel and end the thread."""
        self._loop.run(self._client.close())
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def _next(events: AsyncIterator[_Value]) -> _Value | None:
    return await anext(events, None)


async def _on_loop(make: Callable[[], Generation]) -> Generation:
    # A channel takes the running loop for its own, so the first use must be on the client's.
    return make()
