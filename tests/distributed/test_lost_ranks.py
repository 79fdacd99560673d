"""Kill -9 of a rank, or of the service: what was running ends, what waits survives, no orphans."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.distributed.generations import (
    FOR_EVER,
    ending,
    fields,
    picture,
    read_to_failure,
    small,
    stub_of,
    watch_until,
)
from tests.distributed.servers import START_SECONDS, MortalServers, Server

from ditcast_client.fields import request_from

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Seen = list[int]


async def _follow_health(server: Server, name: str, seen: Seen, enough: list[int]) -> None:
    """Note every status of a service until the last ones are `enough`."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=name)):
            seen.append(answer.status)
            if seen[-len(enough) :] == enough:
                return


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_killed_rank_costs_the_running_generation_and_nothing_else(
    rank: int, mortals: MortalServers
) -> None:
    """With no attempt left it ends UNAVAILABLE with a time to retry; a fresh group takes over."""
    server = mortals.get(2)
    async with server.client() as client, stub_of(server.address) as stub:
        before = await picture(client, **small())
        seen: Seen = []
        health = asyncio.create_task(
            _follow_health(server, "", seen, [SERVING, NOT_SERVING, SERVING])
        )
        lively: Seen = []
        liveness = asyncio.create_task(_follow_health(server, "liveness", lively, []))
        asked = request_from(fields(request_id=f"lost-{rank}", num_inference_steps=FOR_EVER))
        running = stub.Generate(asked)
        for _ in range(5):
            await running.read()
        waiting = [asyncio.create_task(picture(client, **small(seed=seed))) for seed in (5, 6)]
        queued = client.generate(**small(seed=7))
        queued_events = aiter(queued)
        await watch_until(queued_events, "queued")
        old = server.ranks()
        assert len(old) == 2
        old[rank].kill()
        _, error = await read_to_failure(running)
        ended = ending(error)
        assert ended.code is grpc.StatusCode.UNAVAILABLE
        assert ended.reason == "RANKS_LOST"
        assert ended.has(error_details_pb2.RetryInfo)
        assert f"rank {rank} was killed by SIGKILL" in ended.message
        # While the ranks restart, what is new waits with the rest.
        waiting.append(asyncio.create_task(picture(client, **small(seed=8))))
        async with asyncio.timeout(START_SECONDS):
            await watch_until(queued_events, "completed")
            first, second, third = await asyncio.gather(*waiting)
            await health
        assert first == before != second
        assert third == await picture(client, **small(seed=8))
        assert lively == [SERVING]
        liveness.cancel()
        assert not any(process.is_running() for process in old)
        assert len(server.ranks()) == 2
        # The id that ended UNAVAILABLE is free again.
        again = request_from(small(request_id=f"lost-{rank}"))
        assert (await client.generate(again).result()).outputs[0].data == before


@pytest.mark.parametrize("ranks", [1, 2])
async def test_no_process_outlives_a_killed_service(ranks: int, mortals: MortalServers) -> None:
    """Kill -9 of the service, with its ranks inside a step, leaves nothing after 2 s."""
    server = mortals.get(ranks)
    async with stub_of(server.address) as stub:
        request = request_from(fields(num_inference_steps=FOR_EVER))
        running = stub.Generate(request)
        for _ in range(5):
            await running.read()
        assert len(server.ranks()) == ranks
        server.kill()
        server.expect_no_orphans()
        _, error = await read_to_failure(running)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
