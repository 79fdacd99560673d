"""What is asked about a generation reaches the server that has it, through Envoy."""

from __future__ import annotations

import http.client
from collections.abc import AsyncIterator

import pytest
from tests.clients.proxy import Proxy as Shaky
from tests.clients.proxy import proxy_to
from tests.distributed.generations import kinds, small, watch_until
from tests.mesh.load import servers_of
from tests.mesh.pair import Pair
from tests.mesh.proxies import Envoy

from ditcast.v1.diffusion_service_pb2 import GenerateResponse
from ditcast.v1.generation_pb2 import GenerationEvent, GenerationState
from ditcast_client import Cancelled, Client, Generation, NotFound
from ditcast_client.fields import request_from

pytestmark = pytest.mark.mesh

RUNNING = GenerationState.GENERATION_STATE_RUNNING
ROUNDS = 4
"""A proxy that guesses is wrong in one of these, but for 1 time in 16."""


@pytest.fixture
async def shaky(envoy: Envoy) -> AsyncIterator[Shaky]:
    """Stand before Envoy, to cut connections."""
    async with proxy_to(envoy.address) as proxy:
        yield proxy


async def test_a_cut_stream_is_taken_up_where_it_is_made(shaky: Shaky, pair: Pair) -> None:
    """Each event once and in order, and nothing begins again, on whichever server it is."""
    for seed in range(ROUNDS):
        async with Client(shaky.address) as client:
            events: list[GenerationEvent] = []
            async for event in client.generate(**small(num_inference_steps=20, seed=seed)):
                events.append(event)
                if event.step_completed.step == 2:
                    shaky.cut()
        assert "restarted" not in kinds(events)
        logged = [event.sequence for event in events if not event.HasField("heartbeat")]
        assert logged == list(range(1, len(logged) + 1))
    assert shaky.connections > ROUNDS


async def test_anybody_can_watch_and_cancel_by_the_id_alone(envoy: Envoy, client: Client) -> None:
    """Another program has no route; Envoy asks one server after the other."""
    for _ in range(ROUNDS):
        running = client.generate(**small(num_inference_steps=900))
        events = aiter(running)
        await watch_until(events, "step_completed")
        async with Client(envoy.address) as elsewhere:
            await watch_until(aiter(elsewhere.watch(running.request_id)), "step_completed")
            assert await elsewhere.cancel(running.request_id) == RUNNING
        with pytest.raises(Cancelled):
            await watch_until(events, "completed")


async def test_an_id_that_nobody_knows_is_not_found(envoy: Envoy, client: Client) -> None:
    """After every server was asked, with the reason of the last."""
    for ask in (client.cancel("nobody"), client.watch("nobody").result()):
        with pytest.raises(NotFound) as refused:
            await ask
        assert refused.value.reason == "GENERATION_NOT_FOUND"


async def test_a_server_that_drains_is_reached_by_the_route(
    shaky: Shaky, envoy: Envoy, pair: Pair
) -> None:
    """Out of the balance, it is found no more; who has the route watches on, and cancels there."""
    async with Client(shaky.address) as client, Client(envoy.address) as stranger:
        running = client.generate(**small(num_inference_steps=900))
        events = aiter(running)
        await watch_until(events, "step_completed")
        leaving = await pair.of(running.request_id)
        leaving.terminate()
        await envoy.until_healthy([pair.port(pair.other(leaving))])
        with pytest.raises(NotFound):
            await stranger.cancel(running.request_id)
        before = shaky.connections
        shaky.cut()
        while shaky.connections == before:
            await watch_until(events, "step_completed")
        assert await client.cancel(running.request_id) == RUNNING
        with pytest.raises(Cancelled):
            await watch_until(events, "completed")
    leaving.stop()


async def test_a_new_generation_is_not_bound_to_where_the_last_one_was(
    client: Client, pair: Pair
) -> None:
    """Routes are of generations, not of clients."""
    made: list[Generation] = []
    for _ in range(8):
        made.append(client.generate(**small(num_inference_steps=900)))
        await watch_until(aiter(made[-1]), "queued")
    found = await servers_of(pair, [each.request_id for each in made])
    for each in made:
        await each.close()
    assert len(found) == 2


def test_a_browser_gets_events_status_and_route(envoy: Envoy) -> None:
    """gRPC-Web over HTTP/1.1: messages, trailers as the last frame, headers that CORS lets read."""
    connection = http.client.HTTPConnection("127.0.0.1", envoy.port, timeout=60)
    body = request_from(small()).SerializeToString()
    headers = {
        "content-type": "application/grpc-web+proto",
        "x-grpc-web": "1",
        "origin": "http://localhost:8080",
    }
    framed = b"\0" + len(body).to_bytes(4, "big") + body
    connection.request("POST", "/ditcast.v1.DiffusionService/Generate", framed, headers)
    answer = connection.getresponse()
    frames = frames_of(answer.read())
    connection.close()
    events = [GenerateResponse.FromString(data).event for kind, data in frames if kind == 0]
    assert kinds(events)[0] == "queued"
    assert events[-1].HasField("completed")
    kind, trailers = frames[-1]
    assert kind == 0x80
    assert b"grpc-status:0\r\n" in trailers
    exposed = (answer.getheader("access-control-expose-headers") or "").split(",")
    for name in ("ditcast-route", "ditcast-request-id"):
        assert answer.getheader(name)
        assert name in exposed


def frames_of(body: bytes) -> list[tuple[int, bytes]]:
    """Take a body of gRPC-Web apart: the kind of each frame and what is in it."""
    frames = []
    while body:
        length = int.from_bytes(body[1:5], "big")
        frames.append((body[0], body[5 : 5 + length]))
        body = body[5 + length :]
    return frames
