"""One rank alone: lost and replaced like a group of several, and given up when it goes on dying.

The tests run in their order: the last one ends the server.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from tests.distributed.generations import (
    FOR_EVER,
    MASKED,
    ending,
    fields,
    kinds,
    picture,
    read_to_failure,
    stub_of,
    watch_until,
    watched,
)
from tests.distributed.servers import Server, serve

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast.v1.diffusion_service_pb2 import ConfigureRequest
from ditcast_client.fields import request_from


@pytest.fixture(scope="module")
def dying(folder: Path) -> Iterator[Server]:
    """Serve on one rank that fails where a request id says so; the third loss in a row ends it."""
    server = serve(folder, "--crash-loop-losses", "3", faults=True)
    yield server
    server.clear_away()


def _fault(times: int) -> str:
    return f"fault-inside-kill-0-2-{times}-{uuid.uuid4().hex[:8]}"


async def test_a_lost_rank_costs_nothing_but_time(dying: Server) -> None:
    """The generation begins again on a new rank and gives the same bytes."""
    async with dying.client() as client, stub_of(dying.address) as stub:
        before = await picture(client)
        generation = client.generate(**fields(request_id=_fault(1)))
        events, result = await watched(generation)
        assert kinds(events).count("restarted") == 1
        assert result.outputs[0].data == before
        # What is in force is in force on the new rank too, and can be changed there.
        await stub.Configure(ConfigureRequest(configuration=Configuration(cache=MASKED)))
        assert await picture(client) == await picture(client, cache=MASKED) != before


async def test_a_crash_loop_ends_the_process(dying: Server) -> None:
    """Two losses by one generation and a third by the next: exit code 1, all told, no orphans."""
    async with stub_of(dying.address) as stub:
        reasons = []
        for _ in range(2):
            call = stub.Generate(request_from(fields(request_id=_fault(9))))
            _, error = await read_to_failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            reasons.append(ending(error).reason)
    assert reasons[0] == "LOSES_RANKS"
    assert dying.wait() == 1, dying.tail()
    dying.expect_no_orphans()


async def test_the_grace_bounds_a_drain(tmp_path: Path) -> None:
    """What cannot finish in time ends UNAVAILABLE with a time to retry, running or queued."""
    server = serve(tmp_path, "--grace", "0.5")
    async with server.client() as client, stub_of(server.address) as stub:
        running = client.generate(**fields(num_inference_steps=FOR_EVER))
        events = aiter(running)
        await watch_until(events, "step_completed")
        queued = stub.Generate(request_from(fields()))
        await queued.read()
        server.terminate()
        _, error = await read_to_failure(queued)
        ended = ending(error)
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert ended.has(error_details_pb2.RetryInfo)
    server.stop()
