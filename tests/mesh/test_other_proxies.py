"""nginx and HAProxy, with the configurations that are shipped, before the same servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from tests.distributed.generations import (
    endless,
    fields,
    kinds,
    occupied,
    small,
    stub_of,
    watch_until,
)
from tests.mesh.load import generated, servers_of
from tests.mesh.pair import Pair
from tests.mesh.proxies import Proxy

from ditcast.v1.generation_pb2 import GenerationEvent, GenerationState
from ditcast_client import Cancelled, Client
from ditcast_client.fields import request_from

pytestmark = pytest.mark.mesh

PROXIES = ("nginx_before", "haproxy_before")
LONG = 70.0
"""Seconds; longer than what each proxy by default allows a stream that waits."""


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest, pair: Pair) -> Proxy:
    """Give a proxy before two servers that serve."""
    found: Proxy = request.getfixturevalue(request.param)
    return found


async def both_known(proxy: Proxy, pair: Pair) -> None:
    """Wait until generations spread: of one that came back a proxy learns by its next probe."""
    async with asyncio.timeout(60):
        while len(await servers_of(pair, await generated(proxy, 4))) < 2:
            pass


async def test_generations_spread(proxy: Proxy, pair: Pair) -> None:
    """Over both, once the proxy knows that both are there."""
    await both_known(proxy, pair)


async def test_events_come_as_they_happen_and_a_cancel_reaches_the_server(
    proxy: Proxy, pair: Pair
) -> None:
    """The first steps of many are seen, and a call that is dropped ends the generation."""
    async with stub_of(proxy.address) as stub:
        call = stub.Generate(request_from(small(num_inference_steps=900)))
        async for response in call:
            if response.event.step_completed.step == 2:
                break
        request_id = response.event.request_id
        server = await pair.of(request_id)
        call.cancel()
        ended = await server.ended(request_id)
    assert ended["state"] == "cancelled"
    assert ended["steps"] < 900


async def test_what_is_asked_about_a_generation_reaches_its_server(
    proxy: Proxy, pair: Pair
) -> None:
    """By the route that came with its headers: watched beside, and cancelled, 4 times of 4."""
    async with Client(proxy.address) as client:
        for _ in range(4):
            running = client.generate(**small(num_inference_steps=900))
            events = aiter(running)
            await watch_until(events, "step_completed")
            await watch_until(aiter(client.watch(running.request_id)), "step_completed")
            met = await client.cancel(running.request_id)
            assert met == GenerationState.GENERATION_STATE_RUNNING
            with pytest.raises(Cancelled):
                await watch_until(events, "completed")


async def test_a_generation_whose_server_is_killed_begins_again(proxy: Proxy, pair: Pair) -> None:
    """INTERNAL or UNKNOWN from the proxy; the client goes on until it is made, elsewhere."""
    await both_known(proxy, pair)
    async with Client(proxy.address) as client:
        running = client.generate(**small(num_inference_steps=40))
        events = aiter(running)
        await watch_until(events, "step_completed", 2)
        lost = await pair.of(running.request_id)
        lost.kill()
        rest = kinds([event async for event in events])
    assert (rest.count("restarted"), rest[-1]) == (1, "completed")
    assert await pair.of(running.request_id) is pair.other(lost)


async def test_haproxy_asks_for_health_as_grpc_does(haproxy_before: Proxy, pair: Pair) -> None:
    """One that drains gets nothing new after its next probe, and is reached by the route still."""
    await both_known(haproxy_before, pair)
    async with Client(haproxy_before.address) as client:
        running = client.generate(**small(num_inference_steps=900))
        events = aiter(running)
        await watch_until(events, "step_completed")
        leaving = await pair.of(running.request_id)
        said = f"ditcast/server-{pair.servers.index(leaving) + 1} is DOWN"
        before = haproxy_before.said(said)
        leaving.terminate()
        async with asyncio.timeout(30):
            while haproxy_before.said(said) == before:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        assert await servers_of(pair, await generated(haproxy_before, 6)) == [pair.other(leaving)]
        met = await client.cancel(running.request_id)
        assert met == GenerationState.GENERATION_STATE_RUNNING
        with pytest.raises(Cancelled):
            await watch_until(events, "completed")
    leaving.stop()


async def test_a_long_and_quiet_stream_is_not_cut(
    request: pytest.FixtureRequest, pair: Pair
) -> None:
    """Each proxy ends what is silent for 60 s, Envoy by default every stream after 15 s."""
    found: list[Proxy] = []
    for name in ("envoy_before", *PROXIES):
        with contextlib.suppress(pytest.skip.Exception):  # Its own tests say so.
            found.append(request.getfixturevalue(name))
    if not found:
        pytest.skip("no proxy is installed")
    async with contextlib.AsyncExitStack() as stack:
        busy, streams, kept = [], [], []
        # Small, their steps would be through before the time is.
        large = fields(width=256, height=256)
        for server in pair:
            client = await stack.enter_async_context(server.client())
            busy.append(await stack.enter_async_context(occupied(client, large)))
            # A fast machine is through with one: the streams wait for both.
            behind = client.generate(**endless(large))
            busy.append(await stack.enter_async_context(behind))
            waiting = aiter(behind)
            await watch_until(waiting, "queued")
            kept.append(waiting)  # Dropped, it would leave its generation, and cancel it.
        for proxy in found:
            # It does not come back, so that a cut would be seen.
            client = Client(proxy.address, reattach=timedelta())
            streams.append(aiter((await stack.enter_async_context(client)).generate(**small())))
        over = asyncio.get_running_loop().time() + LONG
        await asyncio.gather(*(_watch_past(over, each) for each in streams))
        for running in busy:
            await running.cancel()
        for stream in streams:
            assert kinds([event async for event in stream])[-1] == "completed"


async def _watch_past(over: float, events: AsyncIterator[GenerationEvent]) -> None:
    """Read up to the first event after a time of the loop; one comes every 10 s at the least."""
    async for _ in events:
        if asyncio.get_running_loop().time() > over:
            return
    pytest.fail("it ended before")
