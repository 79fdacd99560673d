"""Around every RPC of ours: failures become statuses, and the end becomes one line in the log.

Of health, reflection and channelz it is only asked who calls, and whether the bytes are a message.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc import aio

from ditcast_runtime.errors import InvalidRequest, ReaderTimeout, RuntimeFailure
from ditcast_runtime.settings import Problem
from ditcast_service import status
from ditcast_service.callers import ANYBODY, Caller
from ditcast_service.gate import Gate, Metadata, client_of

_OURS = "/ditcast.v1."

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Record:
    """What the log line of an RPC says beside its method and code; the servicer fills it in."""

    caller: Caller = ANYBODY
    client: str = ""
    """For whom it counts: the caller, or where nobody says who they are, their address."""
    request_id: str | None = None
    steps: int | None = None
    prompt: str | None = None
    """Set only where the configuration lets prompts stand in the log."""
    began: float = field(default_factory=time.monotonic)
    first_event_at: float | None = None
    """On the same clock; None: no event has been sent."""
    output_bytes: int = 0
    """Of encoded outputs that were sent."""


record: ContextVar[Record] = ContextVar("record")
"""The record of the RPC that runs in this context."""


class Undecodable:
    """Stands for a request whose bytes are no message."""


RpcEnded = Callable[[str, Record], None]
"""Is told the code with which an RPC ended, and what is known of it."""
RpcBegan = Callable[[str, Metadata], RpcEnded]
"""Is told an RPC's name and metadata in the context in which it will run."""

Context = aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_TRANSPORT_GONE = (aio.InternalError, aio.UsageError)
"""What a write raises when its client has left."""


class Edge(aio.ServerInterceptor):
    """Lets in who may call, ends each RPC with the right status and logs it once."""

    def __init__(self, gate: Gate, watching: Sequence[RpcBegan] = ()) -> None:
        self._gate = gate
        self._watching = watching

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler: in full if the method is one of ours."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if not method.startswith(_OURS):
            return _gated(self._gate, method, handler)
        streams = handler.response_streaming
        behaviour = cast("Behaviour", handler.unary_stream if streams else handler.unary_unary)
        make = (
            grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        )
        return make(
            cast("Any", _guarded(self._gate, method, behaviour, self._watching)),
            cast("Any", _lenient(handler)),
            handler.response_serializer,
        )


def _lenient(handler: Handler) -> Callable[[bytes], Message | Undecodable]:
    """Keep bytes that are no message from ending with UNKNOWN, and a traceback in the log."""
    deserialize = cast("Callable[[bytes], Message]", handler.request_deserializer)

    def attempt(data: bytes) -> Message | Undecodable:
        try:
            return deserialize(data)
        except DecodeError:
            return Undecodable()

    return attempt


def _gated(gate: Gate, method: str, handler: Handler) -> Handler:
    """Ask who calls before a handler that is not ours: health's, reflection's and channelz's."""
    kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    kind = next(each for each in kinds if getattr(handler, each) is not None)
    behaviour = getattr(handler, kind)

    def admitted(request: object, context: Context) -> object:
        gate.admit(method, _metadata(context), context.auth_context())
        return _decoded_stream(request) if handler.request_streaming else _decoded(request)

    async def answer(request: object, context: Context) -> object:
        try:
            return await behaviour(admitted(request, context), context)
        except RuntimeFailure as failure:
            return await status.abort(context, status.status_of(failure))

    async def stream(request: object, context: Context) -> AsyncIterator[object]:
        try:
            async for each in behaviour(admitted(request, context), context):
                yield each
        except RuntimeFailure as failure:
            await status.abort(context, status.status_of(failure))

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    wrapped = stream if handler.response_streaming and not _writes(behaviour) else answer
    made: Handler = make(wrapped, _lenient(handler), handler.response_serializer)
    return made


def _decoded(request: object) -> object:
    if isinstance(request, Undecodable):
        raise InvalidRequest((Problem("", "the bytes are no message of this kind"),))
    return request


async def _decoded_stream(requests: object) -> AsyncIterator[object]:
    async for request in cast("AsyncIterator[object]", requests):
        yield _decoded(request)


def _writes(behaviour: object) -> bool:
    """Say whether a streaming handler is a coroutine that writes instead of a generator."""
    return inspect.iscoroutinefunction(behaviour)


def _metadata(context: Context) -> Metadata:
    return cast("Metadata", context.invocation_metadata() or ())


def _guarded(
    gate: Gate, method: str, behaviour: Behaviour, watching: Sequence[RpcBegan]
) -> Behaviour:
    """Run the RPC, then log how it ended."""
    name = method.rpartition("/")[2]

    async def run(request: object, context: Context) -> object:
        mine = Record()
        record.set(mine)
        ends = [began(name, _metadata(context)) for began in watching]
        # Stands unless something else is known: this is how a task ends whose client has left.
        code = "CANCELLED"
        try:
            answer = await _or_abort(gate, method, behaviour, request, context)
        except aio.AbortError:
            code = _name(context.code())
            raise
        except _TRANSPORT_GONE:
            return None  # There is nobody left to send a status to.
        else:
            code = "OK"
            return answer
        finally:
            for ended in ends:
                ended(code, mine)
            _log_end(name, code, context, mine)

    return run


async def _or_abort(
    gate: Gate, method: str, behaviour: Behaviour, request: object, context: Context
) -> object:
    try:
        # First: to those who may not call, nothing is said about what they sent.
        mine = record.get()
        mine.caller = gate.admit(method, _metadata(context), context.auth_context())
        mine.client = client_of(mine.caller, context.peer())
        return cast("object", await behaviour(_decoded(request), context))
    except RuntimeFailure as failure:
        ended = status.status_of(failure)
        if isinstance(failure, ReaderTimeout):
            # The status itself waits behind what the reader does not take: say it now.
            _log.warning("reader timed out", request_id=record.get().request_id)
    except _TRANSPORT_GONE:
        raise
    except Exception as error:  # noqa: BLE001 (outermost frame of an RPC: a bug must reach the log)
        ended = status.status_of(status.fault(error))
    # Out here, where the failure is gone: its traceback holds the generation for as long.
    return await status.abort(context, ended)


def _log_end(method: str, code: str, context: Context, mine: Record) -> None:
    known = {
        "caller": mine.caller.identity or None,
        "request_id": mine.request_id,
        "steps": mine.steps,
        "prompt": mine.prompt,
    }
    _log.info(
        "rpc ended",
        method=method,
        code=code,
        seconds=round(time.monotonic() - mine.began, 4),
        peer=context.peer(),
        **{name: value for name, value in known.items() if value is not None},
    )


def _name(code: object) -> str:
    """Name a code whether gRPC gives the enum or, as aio does, its number."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((each.name for each in grpc.StatusCode if each.value[0] == code), str(code))
