"""What operators ask: health, reflection, channelz, capabilities; and two servers side by side."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.distributed.generations import OFF, levels_apart, picture
from tests.distributed.servers import Server

from ditcast_client import Client

SERVICE = "ditcast.v1.DiffusionService"


@pytest.mark.parametrize("name", ["", SERVICE, "liveness"])
async def test_health_answers_for_the_server_the_service_and_its_life(
    name: str, server_one: Server
) -> None:
    """Check and Watch say SERVING under each name that probes ask for."""
    request = health_pb2.HealthCheckRequest(service=name)
    async with grpc.aio.insecure_channel(server_one.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(request)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_reflection_lists_and_describes_the_service(server_one: Server) -> None:
    """Tools without our stubs find every service, and the file that describes ours."""
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    async with grpc.aio.insecure_channel(server_one.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", channel))
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"} <= listed
    assert answers[1].file_descriptor_response.file_descriptor_proto


async def test_channelz_knows_the_server_and_its_calls(server_one: Server) -> None:
    """The transport's own counters can be read from outside."""
    async with grpc.aio.insecure_channel(server_one.address) as channel:
        stub = channelz_pb2_grpc.ChannelzStub(cast("Any", channel))
        answer = await stub.GetServers(channelz_pb2.GetServersRequest())
    assert answer.server
    assert answer.server[0].data.calls_started > 0


async def test_every_address_serves_the_same_server(server_one: Server) -> None:
    """The Unix socket and the TCP port lead to one queue and one set of generations."""
    unix, tcp = server_one.addresses
    assert unix == server_one.address
    async with Client(unix) as first, Client(tcp) as second:
        made = first.generate(prompt="a circle", num_inference_steps=2)
        result = await made.result()
        assert await second.cancel(result.request_id)
        assert await first.capabilities() == await second.capabilities()


async def test_capabilities_are_those_of_the_group(one: Client, two: Client) -> None:
    """What one rank can do and two cannot is said, with the reason."""
    on_one, on_two = await one.capabilities(), await two.capabilities()
    assert (on_one.world_size, on_two.world_size) == (1, 2)
    assert on_one.model == on_two.model
    prune = {
        capabilities.world_size: method
        for capabilities in (on_one, on_two)
        for method in capabilities.cache_methods
        if method.name == "db_prune"
    }
    assert prune[1].possible
    assert not prune[2].possible
    assert prune[2].reason
    # Ulysses takes parts of any length.
    assert (on_one.limits.image_tokens_multiple, on_two.limits.image_tokens_multiple) == (1, 1)


async def test_two_servers_on_one_machine_do_not_meet(one: Client, two: Client) -> None:
    """At the same time, each gives the picture that it gives alone."""
    alone = await picture(one, cache=OFF, seed=77)
    on_one, on_two = await asyncio.gather(
        *(picture(client, cache=OFF, seed=77) for client in (one, two))
    )
    assert on_one == alone
    assert levels_apart(on_two, alone) <= 1
