"""Watching, awaiting and leaving a generation, against a real server."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from tests.clients.conftest import Scripted
from tests.clients.scripted import (
    UntilCancelled,
    chunks,
    completed,
    ours,
    queued,
    started,
    status,
    step,
    steps,
    success,
)

from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast.v1.generation_pb2 import (
    DisconnectPolicy,
    GenerationEvent,
    GenerationState,
    InputImage,
    InputImageRole,
    Restarted,
)
from ditcast_client import Cancelled, Client, DataLoss, DigestMismatch, Output, input_image
from ditcast_client.fields import GenerateFields

PICTURE = bytes(range(256)) * 20


async def settled(event: asyncio.Event) -> None:
    """Wait for something that happens on the server, but not for ever."""
    await asyncio.wait_for(event.wait(), timeout=10)


async def test_result_alone_reads_the_events(client: Client, server: Scripted) -> None:
    """Awaiting the result needs no watcher."""
    server.service.script = success(PICTURE, PICTURE[::-1])
    result = await client.generate(prompt="a red cup").result()
    assert [output.data for output in result.outputs] == [PICTURE, PICTURE[::-1]]
    assert result.outputs[1] == Output(output_index=1, media_type="image/png", data=PICTURE[::-1])
    assert result.seed == 7
    assert list(result.cache.computed_steps) == [1, 2, 4]
    assert result.timings.total.ToMilliseconds() == 700
    assert result.receipt.deterministic
    assert result.memory[0].peak_bytes == 3 << 20
    assert server.service.cancelled == []


async def test_events_then_result(client: Client, server: Scripted) -> None:
    """A watcher sees every event once and in order, and the result is there afterwards."""
    server.service.script = success(PICTURE)
    generation = client.generate(prompt="a red cup")
    events = [event async for event in generation]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert {event.request_id for event in events} == {generation.request_id}
    assert (await generation.result()).outputs[0].data == PICTURE
    assert [event async for event in generation] == []


async def test_result_beside_a_watcher(client: Client, server: Scripted) -> None:
    """One task may watch while another awaits the result; there is one call for both."""
    server.service.script = success(PICTURE)
    generation = client.generate(prompt="a red cup")

    async def watch() -> int:
        return len([event async for event in generation])

    count, result = await asyncio.gather(watch(), generation.result())
    assert count == len(server.service.script)
    assert result.outputs[0].data == PICTURE
    assert len(server.service.requests) == 1


async def test_second_watcher_is_refused(client: Client, server: Scripted) -> None:
    """Events have one reader at a time: two would each see half of them."""
    server.service.script = success(PICTURE)
    generation = client.generate(prompt="a red cup")
    async for _ in generation:
        with pytest.raises(RuntimeError, match="watched already"):
            await anext(aiter(generation))


async def test_nothing_is_sent_before_it_is_asked_for(client: Client, server: Scripted) -> None:
    """A generation that is never watched nor awaited costs the server nothing."""
    async with client.generate(prompt="a red cup"):
        await asyncio.sleep(0.05)
    assert server.service.requests == []
    assert server.service.cancelled == []


async def test_request_travels_unchanged(client: Client, server: Scripted) -> None:
    """A request is sent as it is, with an id and a window; the caller's message is left alone."""
    server.service.script = success(PICTURE)
    request = GenerateRequest(prompt="a red cup", seed=2**64 - 1, guidance_scale=0.12)
    before = request.SerializeToString(deterministic=True)
    generation = client.generate(request)
    await generation.result()
    (sent,) = server.service.requests
    assert sent.request_id == generation.request_id != ""
    assert sent.reattach_window.ToSeconds() == 30
    sent.ClearField("request_id")
    sent.ClearField("reattach_window")
    assert sent == request
    assert request.SerializeToString(deterministic=True) == before


async def test_own_request_id_is_kept(client: Client, server: Scripted) -> None:
    """The caller's idempotency key is the one that is sent."""
    server.service.script = success(PICTURE)
    await client.generate(prompt="a red cup", request_id="mine").result()
    assert server.service.requests[0].request_id == "mine"


async def test_a_window_of_ones_own_is_kept(client: Client, server: Scripted) -> None:
    """The client asks for a window only where the caller says nothing about it."""
    server.service.script = success(PICTURE)
    await client.generate(prompt="a red cup", reattach_window=timedelta(0)).result()
    policy = DisconnectPolicy.DISCONNECT_POLICY_CONTINUE
    await client.generate(prompt="a red cup", on_disconnect=policy).result()
    own, none = server.service.requests
    assert own.HasField("reattach_window")
    assert own.reattach_window.ToSeconds() == 0
    assert not none.HasField("reattach_window")


def test_keyword_arguments_are_the_fields_of_the_contract() -> None:
    """A field that the contract gains must become a keyword argument."""
    assert set(GenerateFields.__annotations__) == set(GenerateRequest.DESCRIPTOR.fields_by_name)


async def test_pictures_come_from_files_bytes_and_messages(
    server: Scripted, client: Client, tmp_path: Path
) -> None:
    """A name and bytes are the picture to start from; a message says what it is for."""
    server.service.script = success(PICTURE)
    (tmp_path / "a.png").write_bytes(b"a")
    mask = input_image(b"c", InputImageRole.INPUT_IMAGE_ROLE_MASK)
    pictures: list[Path | str | bytes | InputImage] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        b"b",
        mask,
    ]
    await client.generate(prompt="a red cup", images=pictures).result()
    (sent,) = server.service.requests
    assert [image.data for image in sent.images] == [b"a", b"a", b"b", b"c"]
    assert [image.role for image in sent.images][-2:] == [0, mask.role]


async def test_request_and_fields_together_are_refused(client: Client) -> None:
    """What would win is not obvious, so neither does."""
    with pytest.raises(TypeError, match="not both"):
        client.generate(GenerateRequest(prompt="a red cup"), width=128)


async def test_leaving_the_loop_cancels_explicitly(client: Client, server: Scripted) -> None:
    """A server cannot tell a cancel from a lost connection, so `break` sends CancelGeneration."""
    server.service.script = [queued(), started(), step(1), UntilCancelled()]
    generation = client.generate(prompt="a red cup")
    async for event in generation:
        if event.HasField("step_completed"):
            break
    await settled(server.service.cancel_came)
    await settled(server.service.streams_ended)
    assert server.service.cancelled == [generation.request_id]
    with pytest.raises(Cancelled) as caught:
        await generation.result()
    assert caught.value.steps_done == 1
    assert caught.value.reason == "LEFT_EARLY"


async def test_end_of_the_block_cancels(client: Client, server: Scripted) -> None:
    """As a context manager, a generation has been cancelled when its block is left."""
    server.service.script = [queued(), started(), UntilCancelled()]
    async with client.generate(prompt="a red cup") as generation:
        await anext(aiter(generation))
    assert server.service.cancelled == [generation.request_id]


async def test_cancelled_task_cancels_explicitly(client: Client, server: Scripted) -> None:
    """Cancelling the task that waits sends CancelGeneration before the cancel goes on."""
    server.service.script = [queued(), started(), UntilCancelled()]
    generation = client.generate(prompt="a red cup")
    task = asyncio.create_task(generation.result())
    await settled(server.service.request_came)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.service.cancelled == [generation.request_id]


async def test_closing_the_client_leaves_what_runs(server: Scripted) -> None:
    """A closed client leaves no generation behind; who watches it learns why it ended."""
    server.service.script = [queued(), started(), UntilCancelled()]
    client = Client(server.address)
    generation = client.generate(prompt="a red cup")
    task = asyncio.create_task(generation.result())
    await settled(server.service.request_came)
    await client.close()
    assert server.service.cancelled == [generation.request_id]
    with pytest.raises(Cancelled):
        await task


async def test_leaving_at_the_end_cancels_nothing(client: Client, server: Scripted) -> None:
    """Whoever leaves at `completed` has it all: the result counts, and there is no cancel."""
    server.service.script = success(PICTURE)
    async with client.generate(prompt="a red cup") as generation:
        async for event in generation:
            if event.HasField("completed"):
                break
    assert (await generation.result()).outputs[0].data == PICTURE
    assert server.service.cancelled == []


async def test_cancel_ends_the_stream_with_the_steps_done(client: Client, server: Scripted) -> None:
    """`cancel()` answers the state it met; the watcher learns the steps done from the server."""
    server.service.script = [queued(), started(), step(1), step(2), UntilCancelled()]
    generation = client.generate(prompt="a red cup")

    async def cancel_at_step_2() -> None:
        async for event in generation:
            if event.step_completed.step == 2:
                assert await generation.cancel() == GenerationState.GENERATION_STATE_RUNNING

    with pytest.raises(Cancelled) as caught:
        await cancel_at_step_2()
    assert (caught.value.steps_done, caught.value.reason) == (2, "CANCELLED")
    assert server.service.cancelled == [generation.request_id]


async def test_leaving_survives_a_server_that_knows_nothing(
    client: Client, server: Scripted
) -> None:
    """A cancel that crosses the end, or meets a server that is gone, is no error of the leaver."""
    server.service.script = [queued(), UntilCancelled()]
    server.service.cancel_status = status(
        grpc.StatusCode.NOT_FOUND, "no such generation", ours("GENERATION_NOT_FOUND")
    )
    async with client.generate(prompt="a red cup") as generation:
        await anext(aiter(generation))
    await settled(server.service.streams_ended)


async def test_digest_mismatch_is_an_error_of_its_own(client: Client, server: Scripted) -> None:
    """Bytes that are not those of the receipt never become a result."""
    wrong = PICTURE[::-1]
    server.service.script = [queued(), started(), *steps(), *chunks(wrong), completed(PICTURE)]
    with pytest.raises(DigestMismatch) as caught:
        await client.generate(prompt="a red cup").result()
    assert caught.value.output_index == 0
    assert caught.value.expected != caught.value.actual


async def test_broken_chunks_end_and_cancel_the_generation(
    client: Client, server: Scripted
) -> None:
    """A stream that contradicts itself is given up at once, and what makes it is stopped."""
    gap = [event for event in chunks(PICTURE) if event.output_chunk.offset != 1000]
    server.service.script = [queued(), started(), *gap, UntilCancelled()]
    generation = client.generate(prompt="a red cup")
    with pytest.raises(DataLoss, match="2000, but 1000 bytes came"):
        await generation.result()
    assert server.service.cancelled == [generation.request_id]
    with pytest.raises(DataLoss):
        await generation.result()


async def test_early_end_is_data_loss(client: Client, server: Scripted) -> None:
    """A stream that ends OK without `completed` gave no result."""
    server.service.script = [queued(), started(), step(1)]
    with pytest.raises(DataLoss, match="before the last event"):
        await client.generate(prompt="a red cup").result()


async def test_restart_voids_chunks(client: Client, server: Scripted) -> None:
    """After `restarted`, chunks begin again: those sent before are void."""
    again = GenerationEvent(restarted=Restarted(attempt=2, max_attempts=3, reason="rank 1 died"))
    half = list(chunks(PICTURE))[:2]
    server.service.script = [
        *(queued(), started(), *steps(), *half, again),
        *(*steps(), *chunks(PICTURE), completed(PICTURE)),
    ]
    assert (await client.generate(prompt="a red cup").result()).outputs[0].data == PICTURE


async def test_unknown_events_are_passed_over(client: Client, server: Scripted) -> None:
    """An event of a later contract, with a kind that is not known here, changes nothing."""
    later = GenerationEvent.FromString(b"\xfa\x07\x02hi")
    server.service.script = [queued(), later, *success(PICTURE)[1:]]
    assert (await client.generate(prompt="a red cup").result()).outputs[0].data == PICTURE


async def test_validate_only_gives_what_started_says(client: Client, server: Scripted) -> None:
    """After `validate_only` the result holds the resolved parameters and no outputs."""
    server.service.script = [started(seed=99)]
    result = await client.generate(prompt="a red cup", validate_only=True).result()
    assert (result.seed, result.outputs) == (99, ())


async def test_other_calls(client: Client, server: Scripted) -> None:
    """Capabilities, configuration and a cancel by id are one call each."""
    assert (await client.capabilities()).world_size == 2
    assert (await client.configuration()).revision == 7
    assert await client.cancel("some-id") == GenerationState.GENERATION_STATE_RUNNING
    assert server.service.cancelled == ["some-id"]
