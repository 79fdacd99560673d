"""The asynchronous client of a ditcast server: one channel, and a method for each call."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar, Unpack

import grpc

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast.v1.capabilities_pb2 import Capabilities
from ditcast.v1.diffusion_service_pb2 import (
    CancelGenerationRequest,
    GenerateRequest,
    GetCapabilitiesRequest,
    GetConfigurationRequest,
)
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast.v1.generation_pb2 import GenerationState
from ditcast_client.errors import from_rpc_error
from ditcast_client.fields import GenerateFields, request_from
from ditcast_client.generation import Generation

if TYPE_CHECKING:
    from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceAsyncStub

_Answer = TypeVar("_Answer")

# Pings find a peer that vanished without a word. Servers allow one every 30 s.
_CHANNEL_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class Client:
    """Talks to one server; to be used, and closed, on one event loop.

    Nothing is sent before the first call. Closing leaves, and so cancels, what still runs.

    Args:
        address: A gRPC target: "host:port", "unix:/path", "dns:///name:port".
        credentials: TLS, and whatever call credentials go with it; None: without encryption.
        timeout: How long calls other than generations may take.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: timedelta = timedelta(seconds=30),
    ) -> None:
        self.address = address
        self._credentials = credentials
        self._timeout_seconds = timeout.total_seconds()
        self._generations: weakref.WeakSet[Generation] = weakref.WeakSet()

    def generate(
        self, request: GenerateRequest | None = None, **fields: Unpack[GenerateFields]
    ) -> Generation:
        """Give the generation for a request, or for its fields as keyword arguments.

        Raises:
            TypeError: Both were given, or a value is of another type than its field.
            ValueError: A value is outside what its field can hold.
        """
        if request is not None and fields:
            raise TypeError("give a request or its fields, not both")
        generation = Generation(self._stub, _prepared(request or request_from(fields)))
        self._generations.add(generation)
        return generation

    async def cancel(self, request_id: str) -> GenerationState.ValueType:
        """Cancel a generation and give the state that the cancel met.

        Raises:
            NotFound: There is no such generation.
        """
        request = CancelGenerationRequest(request_id=request_id)
        return (await self._unary(self._stub.CancelGeneration, request)).state

    async def capabilities(self) -> Capabilities:
        """Ask what the loaded pipeline accepts."""
        answer = await self._unary(self._stub.GetCapabilities, GetCapabilitiesRequest())
        return answer.capabilities

    async def configuration(self) -> Configuration:
        """Ask for the current configuration, with every default filled in."""
        answer = await self._unary(self._stub.GetConfiguration, GetConfigurationRequest())
        return answer.configuration

    async def close(self) -> None:
        """Leave what still runs and close the channel."""
        for generation in tuple(self._generations):
            await generation.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        # Made at the first use, because a channel belongs to the event loop that runs then.
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.address, _CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.address, self._credentials, _CHANNEL_OPTIONS)

    @cached_property
    def _stub(self) -> DiffusionServiceAsyncStub:
        return DiffusionServiceStub(self._channel)

    async def _unary(self, method: Callable[..., Awaitable[_Answer]], request: object) -> _Answer:
        try:
            return await method(request, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err) from err


def _prepared(request: GenerateRequest) -> GenerateRequest:
    """Copy a request and fill in what our clients always ask for.

    The id is made here, so that a generation can be cancelled before its first event has come. The
    reattach window belongs here too, once servers take one.
    """
    prepared = GenerateRequest()
    prepared.CopyFrom(request)
    prepared.request_id = request.request_id or str(uuid.uuid4())
    return prepared
