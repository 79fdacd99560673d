"""Ends TLS within this process: plain bytes go on through a socketpair, which channels work on.

Channels read and write from two threads or with descriptors, and TLS connections can do neither.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass

_READ_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Stream:
    """A connection as asyncio has it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def accept(end: socket.socket, context: ssl.SSLContext) -> Stream:
    """Be the server of a TLS handshake on an accepted socket; OSError if it fails."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, end, ssl=context)
    return Stream(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def relay(secured: Stream, end: socket.socket) -> None:
    """Pass bytes on between a connection and a plain socket, both ways, until either ends."""
    plain = Stream(*await asyncio.open_connection(sock=end))
    copies = [
        asyncio.create_task(_copy(secured.reader, plain.writer)),
        asyncio.create_task(_copy(plain.reader, secured.writer)),
    ]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        # What was written before still goes out.
        for writer in (plain.writer, secured.writer):
            writer.close()
        for writer in (plain.writer, secured.writer):
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()


class Tunnel:
    """A rank's TLS connection on a thread of its own; `end` is the plain socket into it."""

    def __init__(
        self, end: socket.socket, context: ssl.SSLContext, host: str, limit: float
    ) -> None:
        """Shake hands; OSError if that fails or takes longer than `limit` seconds."""
        self.end, self._inner = socket.socketpair()
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(end, context, host, limit)),
            name="tunnel",
            daemon=True,
        )
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:  # raised on: nobody else has this end yet
            self.end.close()
            raise

    def close(self, limit: float) -> None:
        """Let what was sent go out, for `limit` seconds at most."""
        with contextlib.suppress(OSError):  # The service may have closed it.
            # Closing it would not do while another thread waits for what comes.
            self.end.shutdown(socket.SHUT_RDWR)
        self._thread.join(limit)
        self.end.close()

    async def _live(
        self, end: socket.socket, context: ssl.SSLContext, host: str, limit: float
    ) -> None:
        try:
            async with asyncio.timeout(limit):
                opened = await asyncio.open_connection(sock=end, ssl=context, server_hostname=host)
        except OSError as error:  # TimeoutError is one.
            self._inner.close()
            end.close()
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        await relay(Stream(*opened), self._inner)
