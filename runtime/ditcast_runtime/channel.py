"""The wire between the service and one rank: msgpack frames over a Unix socket, or TCP.

A frame is its length (4 bytes, big-endian) and one message of a closed union. A descriptor may
come along with a frame; each `Output`, and each `Run` with pictures, brings exactly one, so that
the order is enough to pair them.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from ditcast_runtime.messages import Command, Output, Report, Run

MAX_FRAME_BYTES = 64 * 2**20
"""Larger frames end the channel: nothing legitimate comes near, as requests are limited to less."""

_Message = TypeVar("_Message")

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


def unpack(decoder: msgspec.msgpack.Decoder[_Message], payload: bytes) -> _Message:
    """Decode a frame's payload; ChannelClosed if it is no message of the decoder's union.

    Not only msgspec's own errors say so: text that is no UTF-8, or what is nested too deeply, has
    others, and an exception that nobody expects would leave a channel open that nobody reads.
    """
    try:
        return decoder.decode(payload)
    except (ValueError, RecursionError) as error:
        raise ChannelClosed(f"what came is no message: {error}") from error


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


class Received(NamedTuple):
    """A command as it came to a rank."""

    command: Command
    descriptor: int | None
    """Pixels of its pictures, its holder's to close; None: it has none."""


class RankChannel:
    """A rank's end: blocking; any thread may send, one thread receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._frames = FrameBuffer()
        self._waiting: deque[bytes] = deque()
        self._descriptors: deque[int] = deque()
        self._decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)

    def send(self, message: Report, descriptor: int | None = None) -> None:
        """Send one report; a descriptor is duplicated into the service by the kernel."""
        frame = pack(message)
        with self._lock:
            if descriptor is not None:
                sent = socket.send_fds(self._socket, [frame], [descriptor])
                frame = frame[sent:]
            self._socket.sendall(frame)

    def receive(self, timeout: float | None) -> Received | None:
        """Give the next command, or None after `timeout` seconds; ChannelClosed at its end.

        Without a timeout, only the end of the channel ends the wait.
        """
        while not self._waiting:
            readable, _, _ = select.select([self._socket], [], [], timeout)
            if not readable:
                return None
            data, descriptors = _receive(self._socket)
            if not data:
                raise ChannelClosed("the service closed the channel")
            self._descriptors += descriptors
            self._waiting += self._frames.feed(data)
        command = unpack(self._decoder, self._waiting.popleft())
        brings = isinstance(command, Run) and command.pictures
        return Received(command, self._descriptors.popleft() if brings else None)


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
        self._descriptors: deque[int] = deque()
        self._decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
        self._outgoing: deque[_Outgoing] = deque()
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_reader(end, self._read)

    def send(self, message: Command, descriptor: int | None = None) -> None:
        """Send without waiting; what the socket does not take at once follows as it drains.

        A descriptor is duplicated for the rank and stays the caller's.
        """
        if self._open:
            own = None if descriptor is None else os.dup(descriptor)
            self._outgoing.append(_Outgoing(pack(message), own))
            self._write()

    def close(self) -> None:
        """Close this end: the rank then exits by itself. `on_closed` is not called for it."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for frame in self._outgoing:
            frame.close()
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
                if self._outgoing[0].write(self._socket):
                    self._outgoing.popleft()
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
            reports = [unpack(self._decoder, payload) for payload in payloads]
        except BlockingIOError:
            return
        except (OSError, ChannelClosed) as error:
            self._lose(str(error))
            return
        for report in reports:
            brings = isinstance(report, Output) and self._descriptors
            descriptor = self._descriptors.popleft() if brings else None
            self._on_report(report, descriptor)

    def _receive(self) -> bytes:
        data, descriptors = _receive(self._socket)
        self._descriptors += descriptors
        if not data:
            raise ChannelClosed("end of file")
        return data


class _Outgoing:
    """A frame that waits for the socket, with the descriptor that goes along with its beginning."""

    def __init__(self, frame: bytes, descriptor: int | None) -> None:
        self._rest = memoryview(frame)
        self._descriptor = descriptor

    def write(self, end: socket.socket) -> bool:
        """Send what the socket takes; give whether that was the last of it."""
        if self._descriptor is None:
            sent = end.send(self._rest)
        else:
            sent = socket.send_fds(end, [self._rest], [self._descriptor])
            self.close()
        self._rest = self._rest[sent:]
        return not self._rest

    def close(self) -> None:
        """Close its descriptor, if it still has it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _receive(end: socket.socket) -> tuple[bytes, list[int]]:
    """Read what is there, and the descriptors that came along; no bytes: the end."""
    # A rank that ran another program would otherwise hand the pixels on to it.
    data, descriptors, _, _ = socket.recv_fds(
        end, _READ_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    return data, descriptors
