"""The wire between the service and one rank: msgpack frames over an inherited Unix socketpair.

A frame is its length (4 bytes, big-endian) and one message of a closed union. A descriptor may
come along with a frame; each `Output` brings exactly one, so that the order is enough to pair them.
"""

from __future__ import annotations

import array
import asyncio
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

import msgspec

from ditcast_runtime.messages import Command, Output, Report

MAX_FRAME_BYTES = 64 * 2**20
"""Larger frames end the channel: nothing legitimate comes near, as requests are limited to less."""

_LENGTH = struct.Struct(">I")
_READ_BYTES = 256 * 2**10
_MAX_DESCRIPTORS = 8


class ChannelClosed(Exception):
    """The other side is gone, or sent what no frame can be."""


def pack(message: Command | Report) -> bytes:
    """Encode one message as a frame; ValueError if it is larger than any frame may be."""
    payload = msgspec.msgpack.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes is over {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class FrameBuffer:
    """Cuts a byte stream into payloads."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was read and take out every payload that is whole."""
        self._bytes += data
        payloads = []
        while len(self._bytes) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._bytes)
            if size > MAX_FRAME_BYTES:
                raise ChannelClosed(f"a frame of {size} bytes was announced")
            end = _LENGTH.size + size
            if len(self._bytes) < end:
                break
            payloads.append(bytes(self._bytes[_LENGTH.size : end]))
            del self._bytes[:end]
        return payloads


class RankChannel:
    """A rank's end: blocking; any thread may send, one thread receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._frames = FrameBuffer()
        self._waiting: list[bytes] = []
        self._decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)

    def send(self, message: Report, descriptor: int | None = None) -> None:
        """Send one report; a descriptor is duplicated into the service by the kernel."""
        frame = pack(message)
        with self._lock:
            if descriptor is not None:
                sent = socket.send_fds(self._socket, [frame], [descriptor])
                frame = frame[sent:]
            self._socket.sendall(frame)

    def receive(self, timeout: float) -> Command | None:
        """Give the next command, or None after `timeout` seconds; ChannelClosed at its end."""
        while not self._waiting:
            readable, _, _ = select.select([self._socket], [], [], timeout)
            if not readable:
                return None
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ChannelClosed("the service closed the channel")
            self._waiting += self._frames.feed(data)
        return self._decoder.decode(self._waiting.pop(0))


class ServiceChannel:
    """The service's end, on its event loop.

    `on_report` gets each report with the descriptor that came along, which it then owns;
    `on_closed` is called once, with why.
    """

    def __init__(
        self,
        end: socket.socket,
        on_report: Callable[[Report, int | None], None],
        on_closed: Callable[[str], None],
    ) -> None:
        end.settimeout(0)
        self._socket = end
        self._on_report = on_report
        self._on_closed = on_closed
        self._frames = FrameBuffer()
        self._descriptors: list[int] = []
        self._decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
        self._outgoing = bytearray()
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_reader(end, self._read)

    def send(self, message: Command) -> None:
        """Send without waiting; what the socket does not take at once follows as it drains."""
        if self._open:
            self._outgoing += pack(message)
            self._write()

    def close(self) -> None:
        """Close this end: the rank then exits by itself. `on_closed` is not called for it."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _lose(self, reason: str) -> None:
        if self._open:
            self.close()
            self._on_closed(reason)

    def _write(self) -> None:
        try:
            while self._outgoing:
                sent = self._socket.send(self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._write)
            return
        except OSError as error:
            self._lose(str(error))
            return
        self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            payloads = self._frames.feed(self._receive())
            reports = [self._decoder.decode(payload) for payload in payloads]
        except BlockingIOError:
            return
        except (OSError, ChannelClosed, msgspec.MsgspecError) as error:
            self._lose(str(error))
            return
        for report in reports:
            brings = isinstance(report, Output) and self._descriptors
            descriptor = self._descriptors.pop(0) if brings else None
            self._on_report(report, descriptor)

    def _receive(self) -> bytes:
        size = array.array("i").itemsize
        data, ancillary, _, _ = self._socket.recvmsg(
            _READ_BYTES, socket.CMSG_LEN(_MAX_DESCRIPTORS * size)
        )
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(content[: len(content) - len(content) % size])
                self._descriptors += descriptors
        if not data:
            raise ChannelClosed("end of file")
        return data
