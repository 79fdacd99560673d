"""Around every RPC of ours: failures become statuses, and the end becomes one line in the log.

Of reflection and channelz it is only asked who calls; health passes through untouched.
"""

from __future__ import annotations

import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc import aio

from ditcast_runtime.errors import InvalidRequest, ReaderTimeout, RuntimeFailure
from ditcast_runtime.settings import Problem
from ditcast_service import status
from ditcast_service.callers import ANYBODY, Caller
from ditcast_service.gate import OPEN, Gate, Metadata

_OURS = "/ditcast.v1."

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Record:
    """What the log line of an RPC says beside its method and code; the servicer fills it in."""

    caller: Caller = ANYBODY
    request_id: str | None = None
    steps: int | None = None
    prompt: str | None = None
    """Set only where the configuration lets prompts stand in the log."""


record: ContextVar[Record] = ContextVar("record")
"""The record of the RPC that runs in this context."""


class Undecodable:
    """Stands for a request whose bytes are no message."""


Context = aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_TRANSPORT_GONE = (aio.InternalError, aio.UsageError)
"""What a write raises when its client has left."""


class Edge(aio.ServerInterceptor):
    """Lets in who may call, ends each RPC with the right status and logs it once."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

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
        if method.startswith(OPEN):
            return handler
        if not method.startswith(_OURS):
            return _gated(self._gate, method, handler)
        streams = handler.response_streaming
        behaviour = cast("Behaviour", handler.unary_stream if streams else handler.unary_unary)
        make = (
            grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        )
        return make(
            cast("Any", _guarded(self._gate, method, behaviour)),
            cast("Any", _lenient(cast("Callable[[bytes], Message]", handler.request_deserializer))),
            handler.response_serializer,
        )


def _lenient(deserialize: Callable[[bytes], Message]) -> Callable[[bytes], Message | Undecodable]:
    """Keep gRPC from answering bytes that are no message with UNKNOWN."""

    def attempt(data: bytes) -> Message | Undecodable:
        try:
            return deserialize(data)
        except DecodeError:
            return Undecodable()

    return attempt


def _gated(gate: Gate, method: str, handler: Handler) -> Handler:
    """Ask who calls before a handler that is not ours: reflection's and channelz's."""
    kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    kind = next(each for each in kinds if getattr(handler, each) is not None)
    behaviour = getattr(handler, kind)

    async def admit(context: Context) -> None:
        try:
            gate.admit(method, _metadata(context), context.auth_context())
        except RuntimeFailure as failure:
            await status.abort(context, status.status_of(failure))

    async def answer(request: object, context: Context) -> object:
        await admit(context)
        return await behaviour(request, context)

    async def stream(request: object, context: Context) -> AsyncIterator[object]:
        await admit(context)
        async for each in behaviour(request, context):
            yield each

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    wrapped = stream if handler.response_streaming and not _writes(behaviour) else answer
    made: Handler = make(wrapped, handler.request_deserializer, handler.response_serializer)
    return made


def _writes(behaviour: object) -> bool:
    """Say whether a streaming handler is a coroutine that writes instead of a generator."""
    return inspect.iscoroutinefunction(behaviour)


def _metadata(context: Context) -> Metadata:
    return cast("Metadata", context.invocation_metadata() or ())


def _guarded(gate: Gate, method: str, behaviour: Behaviour) -> Behaviour:
    """Run the RPC, then log how it ended."""

    async def run(request: object, context: Context) -> object:
        begin = time.monotonic()
        mine = Record()
        record.set(mine)
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
            _log_end(method, code, time.monotonic() - begin, context, mine)

    return run


async def _or_abort(
    gate: Gate, method: str, behaviour: Behaviour, request: object, context: Context
) -> object:
    try:
        # First: to those who may not call, nothing is said about what they sent.
        record.get().caller = gate.admit(method, _metadata(context), context.auth_context())
        if isinstance(request, Undecodable):
            raise InvalidRequest((Problem("", "the bytes are no message of this kind"),))  # noqa: TRY301
        return cast("object", await behaviour(request, context))
    except RuntimeFailure as failure:
        ended = status.status_of(failure)
        if isinstance(failure, ReaderTimeout):
            # The status itself waits behind what the reader does not take: say it now.
            _log.warning("reader timed out", request_id=record.get().request_id)
    except _TRANSPORT_GONE:
        raise
    except Exception:  # noqa: BLE001 (outermost frame of an RPC: a bug must reach the log)
        error_id = secrets.token_hex(6)
        _log.exception("rpc failed", error_id=error_id)
        ended = status.status_of(status.Fault(error_id))
    # Out here, where the failure is gone: its traceback holds the generation for as long.
    return await status.abort(context, ended)


def _log_end(method: str, code: str, seconds: float, context: Context, mine: Record) -> None:
    known = {
        "caller": mine.caller.identity or None,
        "request_id": mine.request_id,
        "steps": mine.steps,
        "prompt": mine.prompt,
    }
    _log.info(
        "rpc ended",
        method=method.rpartition("/")[2],
        code=code,
        seconds=round(seconds, 4),
        peer=context.peer(),
        **{name: value for name, value in known.items() if value is not None},
    )


def _name(code: object) -> str:
    """Name a code whether gRPC gives the enum or, as aio does, its number."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((each.name for each in grpc.StatusCode if each.value[0] == code), str(code))
