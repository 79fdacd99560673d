"""Addresses: free ports, Unix sockets, and a second server on the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc import aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.service.conftest import Served
from tests.service.fakes import FakeEngine

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast_runtime.errors import ConfigError
from ditcast_service.config import ServerConfig
from ditcast_service.health import Health
from ditcast_service.server import build, listen, register
from ditcast_service.servicer import DiffusionServicer


def made() -> aio.Server:
    """Build a server that listens nowhere yet."""
    config = ServerConfig()
    server = build(config)
    register(server, DiffusionServicer(FakeEngine(), config), Health())
    return server


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_second_server_on_the_same_address_is_refused(kind: str, tmp_path: Path) -> None:
    """It never shares the address in silence, nor takes the socket away from the first."""
    first, second = made(), made()
    wanted = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/socket"
    [address] = listen(first, [wanted])
    await first.start()
    try:
        with pytest.raises(ConfigError, match="Is another server running there"):
            listen(second, [address])
        async with aio.insecure_channel(address) as channel:
            stub = DiffusionServiceStub(channel)
            answer = await stub.GetConfiguration(pb.GetConfigurationRequest())
            assert answer.configuration.revision == 1
    finally:
        await first.stop(None)
        await second.stop(None)


async def test_a_socket_that_a_killed_server_left_is_taken_over(tmp_path: Path) -> None:
    """A restart after kill -9 needs no cleaning up."""
    import socket

    path = tmp_path / "socket"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    server = made()
    assert listen(server, [f"unix:{path}"]) == (f"unix:{path}",)
    await server.stop(None)


async def test_reflection_gives_the_whole_contract(served: Served) -> None:
    """Generic clients find the service without its proto files."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", served.channel))
    name = "ditcast.v1.DiffusionService"
    call = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)])
    )
    files = [
        FileDescriptorProto.FromString(data)
        async for answer in call
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert "ditcast/v1/diffusion_service.proto" in {file.name for file in files}


async def test_channelz_sees_the_server(served: Served) -> None:
    """Operators can look at sockets and counts."""
    stub: Any = channelz_pb2_grpc.ChannelzStub(cast("Any", served.channel))
    answer = await stub.GetServers(channelz_pb2.GetServersRequest())
    assert len(answer.server) >= 1
