"""Ranks that die, stop or fail alone: the group is replaced, and nothing that was accepted is lost.

One server of two ranks, short limits, and faults that a request id asks for (`faults`).
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.distributed.generations import (
    Ending,
    ending,
    fields,
    kinds,
    picture,
    read_to_failure,
    stub_of,
    watched,
)
from tests.distributed.servers import Server, serve

from ditcast.v1.generation_pb2 import GenerationEvent, ProgressOptions
from ditcast_client.fields import request_from

SEED = 11


@pytest.fixture(scope="module")
def faulty(folder: Path) -> Iterator[Server]:
    """Serve on two ranks that fail where a request id says so."""
    server = serve(
        folder,
        *("--world-size", "2"),
        *("--vote-timeout", "1.5"),
        *("--alive-timeout", "4"),
        *("--crash-loop-losses", "50"),
        *("--log-level", "info"),
        *("--crash-folder", str(folder / "crashes")),
        faults=True,
    )
    yield server
    server.stop()


def fault(place: str, kind: str, ranks: str, step: int = 2, times: int = 1) -> str:
    """Make a request id that asks for a fault."""
    return f"fault-{place}-{kind}-{ranks}-{step}-{times}-{uuid.uuid4().hex[:8]}"


async def refused(server: Server, request_id: str) -> tuple[list[GenerationEvent], Ending]:
    """Run a generation that ends with a status; give its events and the status."""
    async with stub_of(server.address) as stub:
        call = stub.Generate(request_from(fields(seed=SEED, request_id=request_id)))
        events, error = await read_to_failure(call)
    return events, ending(error)


@pytest.mark.parametrize(
    ("place", "kind", "ranks"),
    [
        ("before", "kill", "0"),
        ("decode", "kill", "1"),
        ("before", "stop", "1"),
        pytest.param("inside", "kill", "1", marks=pytest.mark.soak),
        pytest.param("inside", "raise", "1", marks=pytest.mark.soak),
        pytest.param("after", "raise", "0", marks=pytest.mark.soak),
    ],
)
async def test_a_generation_whose_ranks_are_lost_is_finished_with_the_same_bytes(
    faulty: Server, place: str, kind: str, ranks: str
) -> None:
    """A loss without a reason of its own: `restarted`, steps from 1 again, the same picture."""
    async with faulty.client() as client:
        undisturbed = await picture(client, seed=SEED)
        request_id = fault(place, kind, ranks)
        shown = ProgressOptions(preview_every_n_steps=3)
        again = fields(seed=SEED, request_id=request_id, progress=shown)
        events, result = await watched(client.generate(**again))
    assert kinds(events).count("restarted") == 1, kinds(events)
    begun = kinds(events).index("restarted")
    logged = [event for event in events if event.WhichOneof("kind") != "heartbeat"]
    steps = [
        event.step_completed.step
        for event in logged[begun:]
        if event.WhichOneof("kind") == "step_completed"
    ]
    assert steps == list(range(1, 9))
    assert [event.preview.step for event in logged[begun:] if event.HasField("preview")] == [3, 6]
    assert logged[begun].restarted.attempt == 2
    assert [event.sequence for event in logged] == list(range(1, len(logged) + 1))
    assert result.outputs[0].data == undisturbed


async def test_what_was_sent_ahead_is_lost_with_the_ranks_and_begins_again(faulty: Server) -> None:
    """Ranks die in the last vote, when they have the next one already: both are finished."""
    async with faulty.client() as client:
        undisturbed = [await picture(client, seed=seed) for seed in (SEED, SEED + 1)]
        made = [
            client.generate(**fields(seed=SEED, request_id=fault("made", "kill", "1"))),
            client.generate(**fields(seed=SEED + 1)),
        ]
        watching = await asyncio.gather(*map(watched, made))
    for (events, result), picture_alone in zip(watching, undisturbed, strict=True):
        assert kinds(events).count("restarted") == 1, kinds(events)
        assert result.outputs[0].data == picture_alone
    first, second = (
        next(event.restarted for event in events if event.HasField("restarted"))
        for events, _ in watching
    )
    # It was not its turn: the loss is none of its attempts.
    assert second.max_attempts == first.max_attempts + 1


async def test_a_failure_on_all_ranks_ends_the_generation_and_keeps_the_group(
    faulty: Server,
) -> None:
    """The same exception from all ranks is an explanation: INTERNAL with an id, no new group."""
    before = [rank.pid for rank in faulty.ranks()]
    _, end = await refused(faulty, fault("after", "raise", "all"))
    assert end.code is grpc.StatusCode.INTERNAL
    assert [rank.pid for rank in faulty.ranks()] == before


@pytest.mark.parametrize("ranks", ["all", "1"])
async def test_out_of_memory_is_not_tried_again(faulty: Server, ranks: str) -> None:
    """Out of memory, on one rank or on all, is an explanation: RESOURCE_EXHAUSTED, no retry."""
    events, end = await refused(faulty, fault("inside", "memory", ranks))
    assert end.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert end.reason == "OUT_OF_MEMORY"
    assert "restarted" not in kinds(events)


async def test_a_veto_before_the_first_step_costs_nothing(faulty: Server) -> None:
    """One rank that cannot prepare: a status at once, and the same ranks run the next one."""
    async with faulty.client() as client:
        await picture(client)
    before = [rank.pid for rank in faulty.ranks()]
    events, end = await refused(faulty, fault("prepare", "raise", "1"))
    assert end.code is grpc.StatusCode.INTERNAL
    error_id = end.info.metadata["error_id"]
    assert error_id in end.message
    line = await faulty.logged(event="generation failed on the ranks", error_id=error_id)
    assert (line["error_type"], line["ranks"]) == ("RuntimeError", [1])
    # The traceback stands under the request's id, in a line of the rank's own.
    told = await faulty.logged(event="failed", request_id=line["request_id"], rank=1)
    assert "injected" in told["exception"]
    assert "step_completed" not in kinds(events)
    assert [rank.pid for rank in faulty.ranks()] == before


async def test_what_loses_its_ranks_twice_at_the_same_stage_is_not_tried_again(
    faulty: Server,
) -> None:
    """Poison: UNAVAILABLE with LOSES_RANKS and no RetryInfo; its id is kept."""
    request_id = fault("inside", "kill", "0", times=9)
    events, end = await refused(faulty, request_id)
    assert kinds(events).count("restarted") == 1
    assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, "LOSES_RANKS")
    _, again = await refused(faulty, request_id)
    assert again.reason == "LOSES_RANKS"


async def test_the_queue_is_untouched_and_health_says_what_is_true(faulty: Server) -> None:
    """Queued generations run on the new group; NOT_SERVING meanwhile, "liveness" SERVING."""
    seen: list[int] = []
    async with grpc.aio.insecure_channel(faulty.address) as channel, faulty.client() as client:
        await picture(client)
        stub: Any = health_pb2_grpc.HealthStub(channel)

        async def watch() -> None:
            async for answer in stub.Watch(health_pb2.HealthCheckRequest(service="")):
                seen.append(answer.status)  # noqa: PERF401 - read while it goes on

        watching = asyncio.create_task(watch())
        lost = client.generate(**fields(seed=1, request_id=fault("inside", "kill", "1")))
        queued = [client.generate(**fields(seed=seed)) for seed in (2, 3, 4)]
        results = await asyncio.gather(*(each.result() for each in (lost, *queued)))
        live = await stub.Check(health_pb2.HealthCheckRequest(service="liveness"))
        watching.cancel()
        assert live.status == health_pb2.HealthCheckResponse.SERVING
        for seed, result in zip((1, 2, 3, 4), results, strict=True):
            assert result.outputs[0].data == await picture(client, seed=seed)
    serving = health_pb2.HealthCheckResponse.SERVING
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    assert seen[:3] == [serving, not_serving, serving]


async def test_a_lost_group_is_reported_with_the_stacks_of_the_living(
    faulty: Server, folder: Path
) -> None:
    """The crash report says how each rank ended, which step it was, and where the others hung."""
    request_id = fault("inside", "raise", "1", step=3)
    async with faulty.client() as client:
        await client.generate(**fields(request_id=request_id)).result()
    [report] = [
        entry
        for entry in faulty.entries()
        if entry.get("event") == "the ranks were lost" and entry.get("request_id") == request_id
    ]
    assert report["last_step"] == 2
    assert [rank["ended"] for rank in report["ranks"]] == ["alive", "alive"]
    assert "rank.py" in report["ranks"][0]["stacks"]
    assert report["ranks"][0]["resident_bytes"] > 0
    kept = [json.loads(file.read_text()) for file in (folder / "crashes").glob("crash-*.json")]
    [same] = [each for each in kept if each["request_id"] == request_id]
    assert same["ranks"] == report["ranks"]


async def test_a_cancel_during_a_restart_ends_it(faulty: Server) -> None:
    """What waits to begin again can be cancelled; the next one runs."""
    request_id = fault("before", "kill", "1")
    async with faulty.client() as client:
        generation = client.generate(**fields(request_id=request_id, num_inference_steps=200))
        async for event in generation:
            if event.WhichOneof("kind") == "restarted":
                break
        assert len(await picture(client)) > 0
    assert (await faulty.ended(request_id))["state"] == "cancelled"
