"""Envoy, with the configuration that is shipped, before two real servers."""

from __future__ import annotations

import grpc
import pytest
from tests.distributed.generations import (
    FOR_EVER,
    ending,
    kinds,
    small,
    stub_of,
    watch_until,
)
from tests.mesh.load import generated, servers_of
from tests.mesh.pair import Pair
from tests.mesh.proxies import Envoy

from ditcast.v1.diffusion_service_pb2 import GetCapabilitiesRequest
from ditcast_client import Client
from ditcast_client.fields import request_from
from ditcast_service.config import ServerConfig

pytestmark = pytest.mark.mesh

LONG = 60
"""Steps of a generation that goes on while a test does something to its server."""


async def test_generations_spread_over_both(envoy: Envoy, pair: Pair) -> None:
    """At the same time, over one connection."""
    assert len(await servers_of(pair, await generated(envoy, 12))) == 2


async def test_a_drained_server_costs_no_request(envoy: Envoy, client: Client, pair: Pair) -> None:
    """SIGTERM: what runs there ends there, all else is made by the other, also before any probe."""
    running = client.generate(**small(num_inference_steps=LONG))
    events = aiter(running)
    await watch_until(events, "step_completed", 2)
    leaving = await pair.of(running.request_id)
    staying = pair.other(leaving)
    leaving.terminate()
    await leaving.logged(event="stopping")
    made = await servers_of(pair, await generated(envoy, 8))
    async with stub_of(envoy.address) as stub:
        for _ in range(10):
            await stub.GetCapabilities(GetCapabilitiesRequest())
    assert made == [staying]
    assert kinds([event async for event in events])[-1] == "completed"
    leaving.stop()
    assert await servers_of(pair, await generated(envoy, 4)) == [staying]


async def test_a_generation_whose_server_is_killed_begins_again(client: Client, pair: Pair) -> None:
    """Envoy says INTERNAL, the other server NOT_FOUND, and the client asks there: same bytes."""
    asked = small(num_inference_steps=40, seed=3)
    undisturbed = await client.generate(**asked).result()
    running = client.generate(**asked)
    events = aiter(running)
    await watch_until(events, "step_completed", 5)
    lost = await pair.of(running.request_id)
    lost.kill()
    rest = [event async for event in events]
    assert kinds(rest).count("restarted") == 1
    assert (await running.result()).outputs[0].data == undisturbed.outputs[0].data
    assert await pair.of(running.request_id) is pair.other(lost)


async def test_who_does_not_serve_gets_nothing_new(
    envoy: Envoy, client: Client, pair: Pair
) -> None:
    """NOT_SERVING while ranks are replaced: new ones go elsewhere, the stream there goes on."""
    running = client.generate(**small(num_inference_steps=20))
    events = aiter(running)
    await watch_until(events, "step_completed", 2)
    away = await pair.of(running.request_id)
    for rank in away.ranks():
        rank.kill()
    await envoy.until_healthy([pair.port(pair.other(away))])
    assert await servers_of(pair, await generated(envoy, 6)) == [pair.other(away)]
    rest = [event async for event in events]
    assert kinds(rest).count("restarted") == 1
    assert await pair.of(running.request_id) is away
    await envoy.until_healthy(pair.ports)


async def test_with_none_healthy_the_servers_answer(envoy: Envoy, pair: Pair) -> None:
    """While all replace their ranks, what comes is queued and made, as one server alone does."""
    for server in pair:
        for rank in server.ranks():
            rank.kill()
    await envoy.until_healthy([])
    assert len(await generated(envoy, 2)) == 2


async def test_a_full_queue_is_refused_in_our_words(envoy: Envoy) -> None:
    """Envoy lets through more than both servers take, so the refusal has its details."""
    places = 2 * (ServerConfig().queue_capacity + 1)
    over = 10
    refused: list[grpc.aio.AioRpcError] = []

    async with stub_of(envoy.address) as stub:
        calls = [
            stub.Generate(request_from(small(num_inference_steps=FOR_EVER)))
            for _ in range(places + over)
        ]
        for call in calls:
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                refused.append(error)
        for call in calls:
            call.cancel()
    assert len(refused) >= over
    for end in map(ending, refused):
        assert (end.code, end.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert end.retry_seconds > 0
