"""Takes spans by OTLP over gRPC, as a collector does, and finds them again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from tests.distributed.servers import WAIT_SECONDS


@dataclass(frozen=True)
class Sent:
    """A span as it came, with the service that sent it."""

    service: str
    span: Any

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.span.name)

    @property
    def attributes(self) -> dict[str, Any]:
        """Its attributes, as plain values."""
        return {pair.key: _plain(pair.value) for pair in self.span.attributes}

    @property
    def seconds(self) -> float:
        """How long it was."""
        return float(self.span.end_time_unix_nano - self.span.start_time_unix_nano) / 1e9


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on a port of its own until it is closed."""

    def __init__(self) -> None:
        self.spans: list[Sent] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, self._server)
        self.address = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(  # noqa: N802 (the protocol calls it so)
        self, request: pb.ExportTraceServiceRequest, _context: object
    ) -> pb.ExportTraceServiceResponse:
        """Take a batch."""
        for resource in request.resource_spans:
            named = {pair.key: _plain(pair.value) for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [Sent(named["service.name"], span) for span in scope.spans]
        return pb.ExportTraceServiceResponse()

    async def wait(self, wanted: Callable[[Sent], bool]) -> Sent:
        """Wait for a span."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for sent in self.spans:
                    if wanted(sent):
                        return sent
                await asyncio.sleep(0.05)

    async def children(self, parent: Sent, *names: str) -> list[Sent]:
        """Wait until a span has children of all these names, and give all, by their begin."""
        for name in names:
            await self.wait(partial(_is_child, parent=parent, name=name))
        found = [sent for sent in self.spans if _is_child(sent, parent)]
        return sorted(found, key=lambda sent: int(sent.span.start_time_unix_nano))

    def close(self) -> None:
        """Stop listening."""
        self._server.stop(None).wait()


def _is_child(sent: Sent, parent: Sent, name: str = "") -> bool:
    same = sent.span.trace_id == parent.span.trace_id
    return bool(
        same and sent.span.parent_span_id == parent.span.span_id and (not name or sent.name == name)
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 (one of several types)
    return getattr(value, value.WhichOneof("value"))
