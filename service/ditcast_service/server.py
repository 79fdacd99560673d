"""Builds the gRPC server: what it serves, on which addresses, under which transport rules."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc import aio
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ditcast.v1 import diffusion_service_pb2_grpc
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import Problem
from ditcast_service.callers import Callers
from ditcast_service.config import ServerConfig
from ditcast_service.gate import Gate
from ditcast_service.health import SERVICE, Health
from ditcast_service.interceptors import Edge, RpcBegan
from ditcast_service.servicer import DiffusionServicer
from ditcast_service.tls import Certificates, TlsFiles
from ditcast_service.translate.capabilities import MIN_PING_INTERVAL_SECONDS

_PING_TOLERANCE_SECONDS = 5
"""Pings are timed by the client and jitter on the way: exactly 30 s would end honest clients."""


def build(config: ServerConfig, watching: Sequence[RpcBegan] = ()) -> aio.Server:
    """Give a server without ports and services; `watching` are told of each RPC."""
    gate = Gate(Callers(config.callers) if config.callers else None)
    return aio.server(interceptors=(Edge(gate, watching),), options=_options(config))


def register(server: aio.Server, servicer: DiffusionServicer, health: Health) -> None:
    """Add all services; before the server starts."""
    diffusion_service_pb2_grpc.add_DiffusionServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    channelz.add_channelz_servicer(server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    names = (SERVICE, health_name, "grpc.channelz.v1.Channelz", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


def listen(
    server: aio.Server, addresses: Sequence[str], tls: TlsFiles | None = None
) -> tuple[str, ...]:
    """Bind every address and give them back with the real ports where 0 was asked for.

    With `tls`, every port has it; sockets of this machine have none.

    Raises:
        ConfigError: one problem for each address that cannot be bound.
    """
    credentials = Certificates(tls).credentials() if tls else None
    bound: list[str] = []
    problems: list[Problem] = []
    for address in addresses:
        try:
            bound.append(_bind(server, address, credentials))
        except (OSError, RuntimeError) as error:
            reason = f"cannot listen on {address}: {error}. Is another server running there?"
            problems.append(Problem(field="listen", reason=reason))
    if problems:
        raise ConfigError(tuple(problems))
    return tuple(bound)


def _bind(server: aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    if address.startswith("unix:"):
        _refuse_taken_socket(address.removeprefix("unix:"))
        server.add_insecure_port(address)
        return address
    port = (
        server.add_secure_port(address, credentials)
        if credentials
        else server.add_insecure_port(address)
    )
    if port == 0:
        raise OSError("the address is in use or not of this machine")
    return f"{address.rpartition(':')[0]}:{port}"


def _refuse_taken_socket(path: str) -> None:
    """GRPC unlinks whatever lies at `path`: without this, a second server would mute the first."""
    if not Path(path).exists():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise OSError("a server answers on this socket")


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    ping_ms = (MIN_PING_INTERVAL_SECONDS - _PING_TOLERANCE_SECONDS) * 1000
    return [
        ("grpc.max_receive_message_length", config.max_request_bytes),
        # With it, the kernel would let a second server share the port and the requests.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", ping_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        # The server's own pings find readers whose machine went away without a word.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # For channelz.
        ("grpc.enable_channelz", 1),
    ]
