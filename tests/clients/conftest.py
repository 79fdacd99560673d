"""A scripted server on a socket of its own, on the loop of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from tests.clients.scripted import ScriptedService

from ditcast.v1.diffusion_service_pb2_grpc import add_DiffusionServiceServicer_to_server
from ditcast_client import Client


@dataclass(frozen=True)
class Scripted:
    """A running server: where it listens, and what it plays."""

    address: str
    service: ScriptedService


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Scripted]:
    """Serve an empty script, to be filled by the test."""
    service = ScriptedService()
    server = grpc.aio.server()
    add_DiffusionServiceServicer_to_server(service, server)
    address = f"unix:{tmp_path}/ditcast.sock"
    server.add_insecure_port(address)
    await server.start()
    yield Scripted(address, service)
    await server.stop(grace=None)


@pytest.fixture
async def client(server: Scripted) -> AsyncIterator[Client]:
    """Connect to the scripted server."""
    async with Client(server.address) as client:
        yield client
