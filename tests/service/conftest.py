"""A real server over a `FakeEngine`, for each test its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from grpc import aio
from tests.service.fakes import FakeEngine

from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast_service.config import ServerConfig
from ditcast_service.health import Health
from ditcast_service.server import build, listen, register
from ditcast_service.servicer import DiffusionServicer

if TYPE_CHECKING:  # It is there for type checkers alone.
    from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceAsyncStub


@dataclass
class Served:
    """A server that runs, and how to reach it."""

    engine: FakeEngine
    stub: DiffusionServiceAsyncStub
    channel: aio.Channel
    address: str
    health: Health


@pytest.fixture
def config() -> ServerConfig:
    """Give the settings; a reader who takes nothing is ended soon."""
    return ServerConfig(reader_timeout=0.5)


@pytest.fixture
async def served(config: ServerConfig) -> AsyncIterator[Served]:
    """Serve on a free port of this machine."""
    engine = FakeEngine()
    health = Health()
    server = build(config)
    register(server, DiffusionServicer(engine, config), health)
    [address] = listen(server, ["127.0.0.1:0"])
    await server.start()
    try:
        async with aio.insecure_channel(address) as channel:
            yield Served(engine, DiffusionServiceStub(channel), channel, address, health)
    finally:
        await server.stop(None)
