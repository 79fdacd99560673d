"""Connections that no client would make: garbage, half a handshake, streams that only take up room.

Each attack returns once it is over; that the server goes on is for the caller to see.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ditcast.v1.acceleration_pb2 import CacheConfig, Disabled
from ditcast.v1.diffusion_service_pb2 import GenerateRequest, WatchGenerationRequest
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast.v1.generation_pb2 import OUTPUT_FORMAT_RAW_RGB8, OutputOptions

Address = tuple[str, int]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_BEGINNINGS = (
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    PREFACE,
    PREFACE + _SETTINGS,
    PREFACE + _SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    b"\x80\x04\x95",
)
"""Nothing, HTTP/1, TLS, HTTP/2 up to several places, a frame of 16 MiB, and a pickle."""

_METHOD = "/ditcast.v1.DiffusionService/GetCapabilities"
_STREAMS_A_CHANNEL = 100
_HEADERS, _RST_STREAM = 1, 3
_END_HEADERS = 4
_RESET_NOW = struct.pack("ii", 1, 0)


def garbage(address: Address, count: int, seed: int) -> None:
    """Send random bytes after beginnings of several protocols, and close."""
    source = random.Random(seed)  # noqa: S311 (to be replayed)
    for _ in range(count):
        data = source.choice(_BEGINNINGS) + source.randbytes(source.randrange(2_000))
        with socket.create_connection(address, 5) as end, contextlib.suppress(OSError):
            end.sendall(data)
            end.settimeout(0.02)
            end.recv(4096)


def resets(address: Address, count: int) -> None:
    """Close connections by a reset, in the middle of a handshake."""
    for _ in range(count):
        with socket.create_connection(address, 5) as end:
            end.sendall(PREFACE[:20])
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_NOW)


def rapid_resets(address: Address, count: int) -> None:
    """Open streams and reset each at once, on one connection: the server has the work."""
    with socket.create_connection(address, 5) as end, contextlib.suppress(OSError):
        end.sendall(PREFACE + _SETTINGS)
        for number in range(count):
            stream = 2 * number + 1
            opened = _frame(_HEADERS, _END_HEADERS, stream, _headers(address))
            end.sendall(opened + _frame(_RST_STREAM, 0, stream, struct.pack(">I", 8)))


@contextlib.contextmanager
def half_open(address: Address, count: int) -> Iterator[None]:
    """Hold connections that stop somewhere in the handshake."""
    with contextlib.ExitStack() as held:
        for number in range(count):
            end = held.enter_context(socket.create_connection(address, 5))
            beginning = PREFACE + _SETTINGS
            end.sendall(beginning[: number % len(beginning)])
        yield


@contextlib.contextmanager
def idle_streams(address: Address, count: int) -> Iterator[None]:
    """Hold streams on which nothing more happens: they watch the health."""
    with contextlib.ExitStack() as held:
        for begin in range(0, count, _STREAMS_A_CHANNEL):
            stub: Any = health_pb2_grpc.HealthStub(held.enter_context(_channel(address)))
            calls = [
                stub.Watch(health_pb2.HealthCheckRequest(service=f"{begin}"))
                for _ in range(min(_STREAMS_A_CHANNEL, count - begin))
            ]
            for call in calls:
                held.callback(call.cancel)
                next(iter(call))
        yield


@contextlib.contextmanager
def slow_readers(address: Address, count: int) -> Iterator[None]:
    """Hold streams of a result that is larger than their windows, and take no more of it."""
    request_id = f"slow-{count}"
    with contextlib.ExitStack() as held:
        first: Any = DiffusionServiceStub(held.enter_context(_channel(address)))
        raw = OutputOptions(format=OUTPUT_FORMAT_RAW_RGB8)
        made = first.Generate(
            GenerateRequest(
                request_id=request_id,
                prompt="x",
                width=256,
                height=256,
                num_inference_steps=2,
                cache=CacheConfig(disabled=Disabled()),
                output=raw,
            )
        )
        for _ in made:
            pass
        for _ in range(count):
            stub: Any = DiffusionServiceStub(held.enter_context(_channel(address)))
            call: Any = stub.WatchGeneration(WatchGenerationRequest(request_id=request_id))
            held.callback(call.cancel)
            next(iter(call))
        yield


def oversized(address: Address, metadata_bytes: int, message_bytes: int) -> list[grpc.StatusCode]:
    """Send more metadata, then a larger message, than is allowed; give how both ended."""
    codes = []
    with _channel(address) as channel:
        call: Any = channel.unary_unary(_METHOD)
        sent: list[tuple[bytes, tuple[tuple[str, str], ...]]] = [
            (b"", (("x", "x" * metadata_bytes),)),
            (b"\x0a" + b"x" * message_bytes, ()),
        ]
        for data, metadata in sent:
            try:
                call(data, metadata=metadata, timeout=30)
            except grpc.RpcError as error:
                ended: Any = error
                codes.append(ended.code())
    return codes


HELD: dict[str, Callable[[Address, int], contextlib.AbstractContextManager[None]]] = {
    "half-open connections": half_open,
    "idle streams": idle_streams,
    "slow readers": slow_readers,
}
"""Attacks that last: the server must answer others meanwhile."""


def _channel(address: Address) -> grpc.Channel:
    # Of its own: channels to the same address would share one connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"{address[0]}:{address[1]}", options)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _headers(address: Address) -> bytes:
    """Write the headers of a call, each as a literal that no table has to hold."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": _METHOD,
        ":authority": address[0],
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
