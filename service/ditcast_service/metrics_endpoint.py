"""Where Prometheus fetches the figures: GET /metrics, on an address of its own.

A scrape takes the event loop only for a look at the engine; the text is made in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import Problem
from ditcast_service.tls import TlsFiles, server_context

_PATIENCE_SECONDS = 10.0
"""How long a connection may take: as long as Prometheus itself waits by default."""

_MOST_HEADER_BYTES = 16 * 2**10


class MetricsEndpoint:
    """Answers scrapes of one registry; `look` is called on the event loop before each."""

    def __init__(self, registry: CollectorRegistry, look: Callable[[], None]) -> None:
        self._registry = registry
        self._look = look
        self._server: asyncio.Server | None = None

    async def listen(self, address: str, tls: TlsFiles | None) -> str:
        """Serve, and give the address back with the real port where 0 was asked for.

        Raises:
            ConfigError: the address cannot be bound.
        """
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.start_server(
                self._serve,
                host.strip("[]"),
                int(port),
                limit=_MOST_HEADER_BYTES,
                ssl=server_context(tls) if tls else None,
                ssl_handshake_timeout=_PATIENCE_SECONDS if tls else None,
            )
        except OSError as error:
            reason = f"cannot listen on {address}: {error.strerror}"
            raise ConfigError((Problem("metrics_listen", reason),)) from error
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head.decode("latin-1")))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # Whoever it was is gone, or speaks no HTTP.
        finally:
            writer.close()

    async def _answer(self, head: str) -> bytes:
        request, _, rest = head.partition("\r\n")
        method, _, target = request.partition(" ")
        if method != "GET":
            return _response("405 Method Not Allowed", "text/plain", b"GET alone\n")
        if target.split(" ")[0].partition("?")[0] != "/metrics":
            return _response("404 Not Found", "text/plain", b"it is at /metrics\n")
        self._look()
        encode, kind = choose_encoder(_accepted(rest))
        return _response("200 OK", kind, await asyncio.to_thread(encode, self._registry))


def _accepted(head: str) -> str:
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "accept":
            return value.strip()
    return ""


def _response(status: str, kind: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
