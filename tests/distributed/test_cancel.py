"""Cancels and deadlines reach the ranks: free at the next step, and nothing comes after."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest
from tests.distributed.generations import (
    FOR_EVER,
    ending,
    fields,
    kinds,
    occupied,
    picture,
    read_to_failure,
    stub_of,
    unmeasured,
    watch_until,
)
from tests.distributed.servers import Server

from ditcast.v1.generation_pb2 import (
    GENERATION_STATE_QUEUED,
    GENERATION_STATE_RUNNING,
    GENERATION_STATE_SUCCEEDED,
)
from ditcast_client import Cancelled, Client, DeadlineExceeded
from ditcast_client.fields import request_from


@pytest.mark.parametrize("name", ["server_one", "server_two"])
async def test_an_rpc_deadline_frees_the_ranks(name: str, request: pytest.FixtureRequest) -> None:
    """When the caller's time is up the generation ends for all its readers, and the next runs."""
    server: Server = request.getfixturevalue(name)
    asked = request_from(unmeasured(request_id=f"late-{name}", num_inference_steps=FOR_EVER))
    async with stub_of(server.address) as stub, server.client() as client:
        timed = stub.Generate(asked, timeout=3.0)
        await timed.read()
        events, other = await read_to_failure(stub.Generate(asked))
        _, own = await read_to_failure(timed)
        assert own.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        ended = ending(other)
        assert ended.code is grpc.StatusCode.DEADLINE_EXCEEDED
        steps = int(ended.info.metadata["steps_done"])
        assert kinds(events).count("step_completed") == steps < FOR_EVER
        assert await picture(client, num_inference_steps=2)
    line = await server.ended(asked.request_id)
    assert (line["state"], line["steps"]) == ("cancelled", steps)


@pytest.mark.parametrize("name", ["server_one", "server_two"])
async def test_a_cancel_frees_the_ranks_and_ends_its_events(
    name: str, request: pytest.FixtureRequest
) -> None:
    """After a cancel no step is reported any more, and the next generation starts and finishes."""
    server: Server = request.getfixturevalue(name)
    async with server.client() as client:
        running = client.generate(**fields(num_inference_steps=FOR_EVER))
        events = aiter(running)
        await watch_until(events, "step_completed", 3)
        assert await client.cancel(running.request_id) == GENERATION_STATE_RUNNING
        with pytest.raises(Cancelled) as cancelled:
            await watch_until(events, "step_completed", FOR_EVER)
        done = cancelled.value.steps_done
        assert done is not None
        assert 3 <= done < FOR_EVER
        line = await server.ended(running.request_id)
        assert (line["state"], line["steps"]) == ("cancelled", done)
        assert await picture(client, num_inference_steps=2)


async def test_the_timeout_of_a_request_is_told_by_type(one: Client) -> None:
    """Our client raises DeadlineExceeded with the steps done; one that waits ends in time too."""
    async with occupied(one, unmeasured()):
        limit = timedelta(milliseconds=300)
        with pytest.raises(DeadlineExceeded) as ended:
            await one.generate(**fields(width=64, height=112, timeout=limit)).result()
        assert ended.value.steps_done == 0


async def test_a_queued_generation_that_is_cancelled_never_reaches_a_rank(
    two: Client, server_two: Server
) -> None:
    """It is never started, and the one behind it moves up and runs."""
    async with occupied(two, fields()) as running:
        waiting = two.generate(**fields(seed=1))
        behind = asyncio.create_task(two.generate(**fields(num_inference_steps=2)).result())
        events = aiter(waiting)
        await watch_until(events, "queued")
        assert await two.cancel(waiting.request_id) == GENERATION_STATE_QUEUED
        with pytest.raises(Cancelled) as cancelled:
            await watch_until(events, "started")
        assert cancelled.value.steps_done == 0
        await running.cancel()
        result = await behind
    assert result.outputs
    line = await server_two.ended(waiting.request_id)
    assert (line["state"], line["steps"]) == ("cancelled", 0)


async def test_a_reader_that_leaves_cancels_its_generation(one: Client, server_one: Server) -> None:
    """When the last reader breaks off, the ranks stop: nobody would see the picture."""
    asked = request_from(fields(request_id="left", num_inference_steps=FOR_EVER))
    async with stub_of(server_one.address) as stub:
        call = stub.Generate(asked)
        for _ in range(4):
            await call.read()
        call.cancel()
    assert await picture(one, num_inference_steps=2)
    line = await server_one.ended("left")
    assert line["state"] == "cancelled"


async def test_a_cancel_after_the_end_answers_the_state_it_met(one: Client) -> None:
    """Cancel and completion can cross; the first into the log wins, and the answer says which."""
    generation = one.generate(**fields(num_inference_steps=2))
    await generation.result()
    assert await one.cancel(generation.request_id) == GENERATION_STATE_SUCCEEDED
