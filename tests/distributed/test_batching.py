"""Generations that share a call of the pipeline: each has its own noise, stream, cancel and end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Unpack

import pytest
from tests.distributed.figures import scrape
from tests.distributed.generations import (
    FOR_EVER,
    MASKED,
    fields,
    kinds,
    levels_apart,
    occupied,
)
from tests.distributed.servers import WAIT_SECONDS, Server, serve

from ditcast.v1.generation_pb2 import (
    OUTPUT_FORMAT_JPEG,
    GenerationEvent,
    OutputOptions,
    ProgressOptions,
)
from ditcast_client import (
    Cancelled,
    Client,
    Internal,
    ResourceExhausted,
    Result,
    Unavailable,
)
from ditcast_client.fields import GenerateFields

PROMPTS = (
    "a large red circle left of a small blue square on a yellow background",
    "a green triangle",
    "a blue circle on a white background",
    "a purple square",
)
"""Of several lengths: the shorter ones are padded, and the padding masked."""
LEVEL = 1
"""Of 255: what rounding to bytes makes of the 1e-3 levels by which a row differs from it alone."""

FAILURES = {"raise": Internal, "memory": ResourceExhausted, "kill": Unavailable}
"""What becomes of a generation that fails in each way."""


@pytest.fixture(scope="module")
def batching(folder: Path) -> Iterator[Server]:
    """Serve in batches of up to four on one rank that fails where a request id says so."""
    server = serve(
        folder,
        *("--max-batch-size", "4", "--crash-loop-losses", "50"),
        # Where many share the cores: a loss that no test asked for would count as one.
        *("--step-timeout-floor", "60"),
        *("--metrics-listen", "127.0.0.1:0"),
        faults=True,
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def batching_two(folder: Path) -> Iterator[Server]:
    """Serve in batches on two ranks that split the weights, and fail where a request id says so."""
    path = folder / "tensor_parallel.yaml"
    path.write_text("parallelism_config:\n  tp_size: 2\n", "utf-8")
    server = serve(
        folder,
        *("--world-size", "2", "--cache-dit-config", str(path)),
        *("--max-batch-size", "4", "--step-timeout-floor", "60"),
        faults=True,
    )
    yield server
    server.stop()


@pytest.fixture
async def client(batching: Server) -> AsyncIterator[Client]:
    """Connect to it."""
    async with batching.client() as client:
        yield client


def asked(index: int, **changed: Unpack[GenerateFields]) -> GenerateFields:
    """Give one of several requests that can share a call."""
    own: GenerateFields = {"prompt": PROMPTS[index], "seed": 100 + index}
    return {**fields(width=64, height=64), **own, **changed}


async def alone(client: Client, requests: list[GenerateFields]) -> list[bytes]:
    """Make each by itself."""
    results = [await client.generate(**each).result() for each in requests]
    assert [each.receipt.batch_size for each in results] == [1] * len(requests)
    return [each.outputs[0].data for each in results]


class Followed:
    """A generation that is watched to its end, with what it has shown so far."""

    def __init__(self, client: Client, request: GenerateFields) -> None:
        self.generation = client.generate(**request)
        self.events: list[GenerationEvent] = []
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> Result:
        async for event in self.generation:
            self.events.append(event)
        return await self.generation.result()

    async def shows(self, kind: str, step: int = 0) -> None:
        """Wait for an event."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not any(  # noqa: ASYNC110 (another task reads)
                each.WhichOneof("kind") == kind and each.step_completed.step >= step
                for each in self.events
            ):
                await asyncio.sleep(0.01)

    async def result(self) -> Result:
        """Wait for its end."""
        return await self._task


async def queued(client: Client, requests: list[GenerateFields]) -> list[Followed]:
    """Have them wait in this order, before any can run, and then let them."""
    followed = []
    async with occupied(client, fields(width=96, height=64)) as running:
        for each in requests:
            followed.append(Followed(client, each))
            await followed[-1].shows("queued")
        await running.cancel()
    return followed


async def together(client: Client, requests: list[GenerateFields]) -> list[Result]:
    """Make all of them at once."""
    return [await each.result() for each in await queued(client, requests)]


async def test_each_of_a_batch_comes_out_as_it_does_alone(client: Client, batching: Server) -> None:
    """Its own prompt, noise, stream and form: the pixels are those of a run of its own.

    A mask settles by the step alone what is cached, so that they are with a cache too.
    """
    for cache in (None, MASKED):
        more: GenerateFields = {} if cache is None else {"cache": cache}
        requests = [asked(index, **more) for index in range(4)]
        apart = await alone(client, requests)
        before = await scrape(batching)
        followed = await queued(client, requests)
        for each, own in zip(followed, apart, strict=True):
            result = await each.result()
            assert levels_apart(result.outputs[0].data, own) <= LEVEL
            assert result.receipt.batch_size == 4
            assert not result.receipt.deterministic
            [started] = [event.started for event in each.events if event.HasField("started")]
            assert started.batch_size == 4
            assert kinds(each.events).count("step_completed") == 8
        now = await scrape(batching)
        # Those of up to four less those of up to two, as what kept the ranks busy is one too.
        up_to = [f"ditcast_batch_size_bucket{{le={size}.0}}" for size in (2, 4)]
        fewer, all_calls = (now[name] - before[name] for name in up_to)
        assert all_calls - fewer == 1


async def test_a_cancel_of_one_of_a_batch_changes_no_byte_of_the_others(client: Client) -> None:
    """It ends at once, and the others as if it had not; once all have left the ranks are free."""
    requests = [asked(index, num_inference_steps=40) for index in range(3)]
    whole = await together(client, requests)
    followed = await queued(client, requests)
    await followed[0].shows("step_completed", 2)
    await followed[0].generation.cancel()
    with pytest.raises(Cancelled) as cancelled:
        await followed[0].result()
    assert cancelled.value.steps_done is not None
    assert 2 <= cancelled.value.steps_done < 40
    for each, same in zip(followed[1:], whole[1:], strict=True):
        assert (await each.result()).outputs[0].data == same.outputs[0].data
    endless = [asked(index, num_inference_steps=FOR_EVER) for index in range(2)]
    left = await queued(client, endless)
    for each in left:
        await each.shows("step_completed", 1)
        await each.generation.cancel()
        with pytest.raises(Cancelled):
            await each.result()
    assert await alone(client, [asked(0)])


@pytest.mark.parametrize("kind", ["raise", "memory", pytest.param("kill", marks=pytest.mark.soak)])
async def test_what_fails_a_batch_fails_alone(client: Client, kind: str) -> None:
    """The others begin again, each alone, and come out with the bytes that they have alone."""
    [own] = await alone(client, [asked(1)])
    poison = f"fault-before-{kind}-0-3-9-{uuid.uuid4().hex[:8]}"
    guilty, other = await queued(client, [asked(0, request_id=poison), asked(1)])
    with pytest.raises(FAILURES[kind]):
        await guilty.result()
    result = await other.result()
    assert result.outputs[0].data == own
    assert result.receipt.batch_size == 1
    [again] = [event.restarted for event in other.events if event.HasField("restarted")]
    assert again.attempt == 2
    assert again.max_attempts == (2 if kind == "kill" else 3)


async def test_a_batch_whose_ranks_are_lost_is_finished(client: Client) -> None:
    """All of it begin again alone, in their order, and come to the bytes that they have alone."""
    request_id = f"fault-before-kill-0-4-1-{uuid.uuid4().hex[:8]}"
    requests = [asked(0, request_id=request_id), asked(1), asked(2)]
    apart = [await alone(client, [asked(index)]) for index in range(3)]
    followed = await queued(client, requests)
    for each, [own] in zip(followed, apart, strict=True):
        result = await each.result()
        assert result.outputs[0].data == own
        assert kinds(each.events).count("restarted") == 1
    ends = [each.events[-1].time.ToNanoseconds() for each in followed]
    assert ends == sorted(ends)


async def test_only_what_is_alike_shares_a_call(client: Client) -> None:
    """Another size, number of steps, scale or cache is another call; another form is not."""
    jpeg = OutputOptions(format=OUTPUT_FORMAT_JPEG)
    results = await together(
        client,
        [
            asked(0),
            asked(1, height=96),
            asked(1, num_inference_steps=7),
            asked(1, true_cfg_scale=2.0),
            asked(1, cache=MASKED),
            asked(1, num_images=2),
            asked(2, output=jpeg),
        ],
    )
    assert [each.receipt.batch_size for each in results] == [2, 1, 1, 1, 1, 1, 2]
    assert results[-1].outputs[0].media_type == "image/jpeg"


async def test_each_of_a_batch_has_its_own_previews(client: Client) -> None:
    """So many and as large as each has asked for, and none where none were."""
    asking = [
        ProgressOptions(preview_every_n_steps=2, preview_max_side=32),
        ProgressOptions(preview_every_n_steps=8, preview_max_side=16),
        ProgressOptions(),
    ]
    requests = [asked(index, progress=each) for index, each in enumerate(asking)]
    followed = await queued(client, requests)
    for each in followed:
        assert (await each.result()).receipt.batch_size == 3
    shown = [
        [event.preview for event in each.events if event.HasField("preview")] for each in followed
    ]
    assert {preview.width for preview in shown[0]} == {32}
    assert [(preview.step, preview.width) for preview in shown[1]] == [(8, 16)]
    assert shown[2] == []


async def test_nothing_is_batched_unless_it_is_asked_for(one: Client, client: Client) -> None:
    """A server that is not told to runs each alone, and both say what they do."""
    results = await together(one, [asked(0), asked(1)])
    assert [each.receipt.batch_size for each in results] == [1, 1]
    found = [(await each.capabilities()).max_batch_size for each in (one, client)]
    assert found == [1, 4]


async def test_two_ranks_make_batches_as_one_does(batching_two: Server) -> None:
    """Each row is as alone, and a cancel of one changes no byte of the other."""
    requests = [asked(index, num_inference_steps=4) for index in range(2)]
    async with batching_two.client() as client:
        apart = await alone(client, requests)
        whole = await together(client, requests)
        for result, own in zip(whole, apart, strict=True):
            assert result.receipt.batch_size == 2
            assert levels_apart(result.outputs[0].data, own) <= LEVEL
        followed = await queued(client, requests)
        await followed[0].shows("step_completed", 1)
        await followed[0].generation.cancel()
        with pytest.raises(Cancelled):
            await followed[0].result()
        assert (await followed[1].result()).outputs == whole[1].outputs


@pytest.mark.soak
async def test_a_batch_that_loses_any_rank_is_finished(batching_two: Server) -> None:
    """Also where it is not the one that reports, and the other waits for it in a collective."""
    requests = [asked(index, num_inference_steps=4) for index in range(2)]
    lost = f"fault-before-kill-1-2-1-{uuid.uuid4().hex[:8]}"
    async with batching_two.client() as client:
        apart = await alone(client, requests)
        results = await together(client, [{**requests[0], "request_id": lost}, requests[1]])
        assert [each.outputs[0].data for each in results] == apart
        assert [each.receipt.batch_size for each in results] == [1, 1]


@pytest.mark.soak
async def test_what_cannot_be_made_in_one_call_is_served_alone(folder: Path) -> None:
    """The mask of padded prompts is not split over ranks: the log says so, and each runs alone."""
    server = serve(folder, "--world-size", "2", "--max-batch-size", "4")
    try:
        line = await server.logged(event="served without batches")
        assert "several prompts" in line["cause"]
        async with server.client() as client:
            results = await together(client, [asked(0), asked(1)])
            assert [each.receipt.batch_size for each in results] == [1, 1]
            assert (await client.capabilities()).max_batch_size == 1
    finally:
        server.clear_away()
