"""Leaving and coming back with a real server and a real rank; results lie on disk at once."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from tests.clients.proxy import proxy_to
from tests.service.test_lifecycle import serving, wait_until_serving

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast.v1.generation_pb2 import (
    DisconnectPolicy,
    GenerationEvent,
    GenerationState,
    OutputFormat,
    OutputOptions,
)
from ditcast_client import Cancelled, Client, Generation, ResourceExhausted

Server = tuple[subprocess.Popen[str], str]

RAW = OutputOptions(format=OutputFormat.OUTPUT_FORMAT_RAW_RGB8)
"""So that an output is larger than a page of disk."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the embedded model on one rank, for all tests here."""
    with serving(tmp_path_factory.mktemp("server"), "--retention-memory-bytes", "0") as made:
        wait_until_serving(made[0])
        yield made


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """Connect to it."""
    async with Client(server[1]) as client:
        yield client


def begin(client: Client, request_id: str, steps: int = 12, **fields: Any) -> Generation:  # noqa: ANN401
    """Ask for the same picture each time."""
    return client.generate(
        prompt="a red circle",
        seed=7,
        num_inference_steps=steps,
        output=RAW,
        request_id=request_id,
        **fields,
    )


def kinds(events: list[GenerationEvent], name: str) -> int:
    """Count the events of a kind."""
    return sum(event.WhichOneof("kind") == name for event in events)


async def state_of(client: Client, request_id: str) -> GenerationState.ValueType:
    """Ask where a generation is."""
    found = await client.list_generations()
    return next(each.state for each in found if each.request_id == request_id)


async def test_a_cut_in_the_middle_changes_nothing(client: Client, server: Server) -> None:
    """The same events, the same bytes, one render; and the same again from disk."""
    whole = (await begin(client, "whole").result()).outputs[0].data
    async with proxy_to(server[1]) as proxy, Client(proxy.address) as shaky:
        generation = begin(shaky, "cut")
        events = []
        async for event in generation:
            events.append(event)
            if event.step_completed.step in (2, 5) or event.output_chunk.data:
                proxy.cut()
        assert (await generation.result()).outputs[0].data == whole
        assert proxy.connections > 2
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert (kinds(events, "started"), kinds(events, "step_completed")) == (1, 12)
    replay = [event async for event in client.watch("cut")]
    assert replay == events


async def test_who_leaves_without_a_window_ends_it(client: Client, server: Server) -> None:
    """The ranks leave at the next step, and the next generation runs."""
    async with aio.insecure_channel(server[1]) as channel:
        request = pb.GenerateRequest(prompt="a", num_inference_steps=1000, request_id="left")
        call: aio.UnaryStreamCall[Any, Any] = DiffusionServiceStub(channel).Generate(request)
        response: Any = await call.read()
        while not response.event.HasField("step_completed"):
            response = await call.read()
        call.cancel()
    with pytest.raises(Cancelled) as ended:
        await client.watch("left").result()
    assert ended.value.steps_done is not None
    assert ended.value.steps_done < 100
    assert (await begin(client, "after", steps=2).result()).outputs


async def test_who_comes_back_within_the_window_finds_it_running(
    client: Client, server: Server
) -> None:
    """Nobody reads for a while, and it goes on."""
    async with proxy_to(server[1]) as proxy, Client(proxy.address) as gone:
        generation = begin(gone, "window", steps=40)
        async for event in generation:
            if event.step_completed.step == 2:
                break
        # As a client that dies: the connection ends without a word, and no cancel can be sent.
        proxy.shut()
        await generation.close()
    assert await state_of(client, "window") == GenerationState.GENERATION_STATE_RUNNING
    events = [event async for event in client.watch("window")]
    assert (kinds(events, "started"), kinds(events, "step_completed")) == (1, 40)
    assert events[-1].HasField("completed")


async def test_what_continues_can_be_fetched_afterwards(client: Client) -> None:
    """Nobody is there when it ends, and its picture is."""
    policy = DisconnectPolicy.DISCONNECT_POLICY_CONTINUE
    async with begin(client, "continues", on_disconnect=policy) as generation:
        await anext(aiter(generation))
    succeeded = GenerationState.GENERATION_STATE_SUCCEEDED
    async with asyncio.timeout(60):
        while await state_of(client, "continues") != succeeded:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    fetched = await client.watch("continues").result()
    assert fetched.outputs[0].data == (await begin(client, "now").result()).outputs[0].data


async def test_a_full_disk_costs_later_readers_alone(client: Client, server: Server) -> None:
    """Who reads gets every byte; who comes later a reason; the next generation is as ever."""
    pid = server[0].pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        result = await begin(client, "full").result()
        with pytest.raises(ResourceExhausted) as refused:
            await client.watch("full").result()
        assert refused.value.reason == "RESULT_NOT_KEPT"
        with pytest.raises(ResourceExhausted):
            await begin(client, "full").result()
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert (await begin(client, "next").result()).outputs == result.outputs
    assert (await client.watch("next").result()).outputs == result.outputs


async def test_a_killed_service_is_asked_again(tmp_path: Path) -> None:
    """Another process at the same address gets the same request, and makes the same picture."""
    with contextlib.ExitStack() as servers:
        process, address = servers.enter_context(serving(tmp_path))
        wait_until_serving(process)
        async with Client(address) as client:
            whole = (await begin(client, "whole").result()).outputs
            generation = begin(client, "killed")
            events = []
            async for event in generation:
                events.append(event)
                if event.step_completed.step == 3 and kinds(events, "restarted") == 0:
                    process.kill()
                    process.wait(10)
                    servers.enter_context(serving(tmp_path))
            assert (await generation.result()).outputs == whole
    assert (kinds(events, "restarted"), kinds(events, "completed")) == (1, 1)
