"""A TCP proxy whose connections a test cuts, as a network does: without a word of HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """Passes connections on to a server.

    Attributes:
        address: Where it listens.
        passed: Bytes that came from the server, over all connections.
        connections: How many there were.
    """

    def __init__(self, target: str) -> None:
        self.address = ""
        self.passed = 0
        self.connections = 0
        self._target = target
        self._cut_at: list[int] = []
        self._listening: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen, at the same port as before if there was one."""
        port = int(self.address.rpartition(":")[2] or 0)
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.address = f"127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"

    def shut(self) -> None:
        """Cut all connections and take no new ones."""
        if self._listening is not None:
            self._listening.close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def cut_after(self, *counts: int) -> None:
        """Cut all connections when so many bytes came from the server, for each of the counts."""
        self._cut_at = sorted(counts)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            there, back = await self._connect()
            self._writers |= {writer, back}
            await asyncio.gather(
                self._pump(reader, back, counted=False), self._pump(there, writer, counted=True)
            )
        writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.startswith("unix:"):
            return await asyncio.open_unix_connection(self._target.removeprefix("unix:"))
        host, _, port = self._target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        try:
            while data := await reader.read(2**16):
                if counted and self._cut_at and self.passed + len(data) >= self._cut_at[0]:
                    data = data[: self._cut_at.pop(0) - self.passed]
                    self.passed += len(data)
                    writer.write(data)
                    await writer.drain()
                    self.cut()
                    return
                self.passed += len(data) if counted else 0
                writer.write(data)
                await writer.drain()
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def proxy_to(target: str) -> AsyncIterator[Proxy]:
    """Stand before a server for the length of a block."""
    proxy = Proxy(target)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.shut()
