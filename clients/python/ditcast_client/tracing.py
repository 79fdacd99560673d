"""Takes a program's OpenTelemetry trace along to the server; nothing where the program has none.

The library is never imported here: a program that traces has imported it, and one that does not
pays nothing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import grpc
    from opentelemetry.trace import Span

Metadata = tuple[tuple[str, str], ...]

_SERVICE: Final = "ditcast.v1.DiffusionService"

_watching: Final[set[asyncio.Task[None]]] = set()
"""Those that wait for calls to end; the event loop itself keeps no hold on them."""


class CallSpan:
    """The span of one call to the server, under whatever span is current."""

    def __init__(self, method: str) -> None:
        from opentelemetry import propagate, trace  # noqa: PLC0415 (the program has done so)

        attributes = {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": method}
        self._span: Span = trace.get_tracer("ditcast_client").start_span(
            f"{_SERVICE}/{method}", kind=trace.SpanKind.CLIENT, attributes=attributes
        )
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        self.metadata: Metadata = tuple(carrier.items())

    def end_with(self, call: grpc.aio.Call) -> None:
        """Let it end when the call does, with the call's status."""
        task = asyncio.ensure_future(self._end(call))
        _watching.add(task)
        task.add_done_callback(_watching.discard)

    async def _end(self, call: grpc.aio.Call) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 (as above)

        try:
            code: Any = await call.code()
            number: int = code.value[0]
            self._span.set_attribute("rpc.grpc.status_code", number)
            if number:
                self._span.set_status(StatusCode.ERROR, code.name)
            else:
                self._span.set_status(StatusCode.OK)
        finally:
            self._span.end()


def begin(method: str) -> CallSpan | None:
    """Begin the span of a call; None where the program does not trace."""
    return CallSpan(method) if "opentelemetry.trace" in sys.modules else None
