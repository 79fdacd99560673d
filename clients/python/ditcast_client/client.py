"""The asynchronous client of a ditcast server: one channel, and a method for each call."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Sequence,
)
from datetime import timedelta
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar, Unpack

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast.v1.capabilities_pb2 import Capabilities
from ditcast.v1.diffusion_service_pb2 import (
    Adapter,
    CancelGenerationRequest,
    ConfigureRequest,
    ConfigureResponse,
    GenerateRequest,
    GetCapabilitiesRequest,
    GetConfigurationRequest,
    ListAdaptersRequest,
    ListAdaptersResponse,
    ListGenerationsRequest,
    LoadAdapterRequest,
    TuneRequest,
    UnloadAdapterRequest,
)
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast.v1.generation_pb2 import DisconnectPolicy, GenerationState, GenerationSummary, Receipt
from ditcast.v1.tuning_pb2 import TuneEvent
from ditcast_client.access import Token, accompany
from ditcast_client.attachment import Attachment, Patience
from ditcast_client.errors import from_rpc_error
from ditcast_client.fields import GenerateFields, request_from
from ditcast_client.generation import Generation
from ditcast_client.replaying import Replay, replay
from ditcast_client.routes import Routes

if TYPE_CHECKING:
    from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceAsyncStub

_Answer = TypeVar("_Answer")

CONFIGURE_TIMEOUT: Final = timedelta(minutes=10)
"""How long a change may wait for the running generation and a reload, unless told otherwise."""

_CHANNEL_OPTIONS: Final = (
    # Pings find a peer that vanished without a word. Servers allow one every 30 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # By default a channel leaves a server that was gone alone for up to 2 min.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)

_REATTACH_WINDOW: Final = timedelta(seconds=30)
"""How long a generation goes on while its connection is broken; servers allow at least this."""

_MAX_PAGE: Final = 1000


class Client:
    """Talks to one server; to be used, and closed, on one event loop.

    Nothing is sent before the first call. Closing leaves, and so cancels, what still runs.

    Args:
        address: A gRPC target: "host:port", "unix:/path", "dns:///name:port".
        credentials: TLS (`ditcast_client.access.tls` reads files); None: without encryption.
        token: A bearer token, or what gives it anew for each call; None: none is sent. Without
            TLS it can be read on the way.
        timeout: How long calls other than generations may take.
        reattach: How long to come back to a generation after its connection broke; 0: not at all.
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
        self.address = address
        self._credentials = credentials
        self._token = token
        self._timeout_seconds = timeout.total_seconds()
        self._patience = Patience(limit=reattach.total_seconds())
        self._routes = Routes()
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
        prepared = _prepared(request or request_from(fields))
        validate_only = prepared.validate_only
        attachment = Attachment(
            self._stub,
            prepared.request_id,
            self._routes,
            # What runs nothing has nothing to come back to.
            Patience(limit=0) if validate_only else self._patience,
            request=prepared,
        )
        generation = Generation(
            self._stub,
            attachment,
            cancel_on_leave=not _continues(prepared),
            validate_only=validate_only,
        )
        self._generations.add(generation)
        return generation

    def watch(self, request_id: str, after_sequence: int = 0) -> Generation:
        """Give a generation that runs or has ended, to be watched beside its other readers.

        Leaving it cancels nothing. From the first event it has a result, like one's own.

        Args:
            request_id: Its id.
            after_sequence: The last event that is known already; its events begin after it.
        """
        attachment = Attachment(
            self._stub, request_id, self._routes, self._patience, after_sequence=after_sequence
        )
        generation = Generation(self._stub, attachment, cancel_on_leave=False)
        self._generations.add(generation)
        return generation

    async def list_generations(
        self, *, states: Collection[GenerationState.ValueType] = (), limit: int | None = None
    ) -> list[GenerationSummary]:
        """List the generations that the server knows, the newest first.

        Args:
            states: Only those in one of these states; empty: all.
            limit: At most so many; None: all.
        """
        found: list[GenerationSummary] = []
        request = ListGenerationsRequest(states=states)
        while limit is None or len(found) < limit:
            request.page_size = _MAX_PAGE if limit is None else min(_MAX_PAGE, limit - len(found))
            answer = await self._unary(self._stub.ListGenerations, request)
            found += answer.generations
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        return found

    async def cancel(self, request_id: str) -> GenerationState.ValueType:
        """Cancel a generation and give the state that the cancel met.

        Raises:
            NotFound: There is no such generation.
        """
        request = CancelGenerationRequest(request_id=request_id)
        return (await self._unary(self._stub.CancelGeneration, request)).state

    async def replay(self, receipt: Receipt, images: Iterable[bytes] = ()) -> Replay:
        """Make what a receipt names again; see `ditcast_client.replay`."""
        return await replay(self, receipt, images)

    async def capabilities(self) -> Capabilities:
        """Ask what the loaded pipeline accepts."""
        answer = await self._unary(self._stub.GetCapabilities, GetCapabilitiesRequest())
        return answer.capabilities

    async def configuration(self, revision: int | None = None) -> Configuration:
        """Ask for the current configuration, or one of the last 20, with every default filled in.

        Raises:
            NotFound: No configuration is kept under that revision.
        """
        request = GetConfigurationRequest(revision=revision)
        return (await self._unary(self._stub.GetConfiguration, request)).configuration

    async def configure(
        self,
        configuration: Configuration,
        *,
        update_mask: Sequence[str] = (),
        expected_revision: int | None = None,
        validate_only: bool = False,
        allow_reload: bool = False,
        timeout: timedelta = CONFIGURE_TIMEOUT,  # noqa: ASYNC109 (the server keeps to it)
    ) -> ConfigureResponse:
        """Change the acceleration while the server runs; it waits for the running generation.

        Args:
            configuration: The new values.
            update_mask: Paths that change; one left unset goes back to the start. Empty: all that
                is set. "*": replace all, for instance with an earlier configuration.
            expected_revision: What the change builds on. None: any.
            validate_only: Ask what would become of each field, and change nothing.
            allow_reload: Whether the ranks may be loaded anew for it.
            timeout: After which the server gives it up, and nothing was changed.

        Raises:
            InvalidArgument: Values that cannot be.
            FailedPrecondition: The pipeline cannot do it, or a reload is needed and not allowed.
            Aborted: Another revision is in force.
            DeadlineExceeded: The time ran out; with the reason NOT_APPLIED for certain before
                anything was changed.
        """
        request = ConfigureRequest(
            configuration=configuration,
            update_mask=FieldMask(paths=update_mask) if update_mask else None,
            expected_revision=expected_revision,
            validate_only=validate_only,
            allow_reload=allow_reload,
        )
        return await self._unary(self._stub.Configure, request, timeout.total_seconds())

    async def list_adapters(self) -> ListAdaptersResponse:
        """Ask which adapters are loaded, and which files could be."""
        return await self._unary(self._stub.ListAdapters, ListAdaptersRequest())

    async def load_adapter(
        self,
        name: str,
        file: str,
        *,
        timeout: timedelta = CONFIGURE_TIMEOUT,  # noqa: ASYNC109 (the server keeps to it)
    ) -> Adapter:
        """Load a LoRA adapter on all ranks; it waits for the running generation.

        Args:
            name: What requests will call it.
            file: As `list_adapters` gives it under `available`.
            timeout: After which the server gives it up, and nothing was changed.

        Raises:
            InvalidArgument: A name that cannot be.
            NotFound: There is no such file in the folders that the operator listed.
            AlreadyExists: The name is taken by another file.
            FailedPrecondition: The pipeline takes no adapters, or not this one.
            DeadlineExceeded: The time ran out.
        """
        request = LoadAdapterRequest(name=name, file=file)
        seconds = timeout.total_seconds()
        return (await self._unary(self._stub.LoadAdapter, request, seconds)).adapter

    async def unload_adapter(
        self,
        name: str,
        *,
        timeout: timedelta = CONFIGURE_TIMEOUT,  # noqa: ASYNC109 (as above)
    ) -> None:
        """Remove an adapter from all ranks; it waits for the running generation.

        Raises:
            NotFound: None is loaded under this name.
            DeadlineExceeded: The time ran out.
        """
        request = UnloadAdapterRequest(name=name)
        await self._unary(self._stub.UnloadAdapter, request, timeout.total_seconds())

    async def tune(self, request: TuneRequest) -> AsyncGenerator[TuneEvent]:
        """Have cache settings measured on one's own prompts; see Tune in the contract.

        Leaving the loop ends it at the next step, as soon as Python lets go of it or `aclose` is
        called. A connection that breaks ends it too: what was found so far is in its events.

        Raises:
            InvalidArgument: Fields that cannot be, all at once.
            FailedPrecondition: The loaded pipeline cannot do it.
            ResourceExhausted: The queue is full, or another Tune runs.
            Aborted: The configuration was changed meanwhile.
        """
        call = self._stub.Tune(request)
        try:
            async for response in call:
                yield response.event
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err) from err
        finally:
            call.cancel()

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
        stub = DiffusionServiceStub(self._channel)
        accompany(stub, self._token, self._routes)
        return stub

    async def _unary(
        self,
        method: Callable[..., Awaitable[_Answer]],
        request: object,
        seconds: float | None = None,
    ) -> _Answer:
        try:
            return await method(request, timeout=seconds or self._timeout_seconds)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err) from err


def _prepared(request: GenerateRequest) -> GenerateRequest:
    """Copy a request and fill in what our clients always ask for.

    The id is made here, so that a generation can be cancelled before its first event has come. The
    window is what a client that comes back by itself needs.
    """
    prepared = GenerateRequest()
    prepared.CopyFrom(request)
    prepared.request_id = request.request_id or str(uuid.uuid4())
    if not (request.HasField("reattach_window") or _continues(request)):
        prepared.reattach_window.FromTimedelta(_REATTACH_WINDOW)
    return prepared


def _continues(request: GenerateRequest) -> bool:
    return request.on_disconnect == DisconnectPolicy.DISCONNECT_POLICY_CONTINUE
