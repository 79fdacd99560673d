"""The blocking client behaves as the asynchronous one does, for callers without an event loop."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest
from grpc import StatusCode
from tests.clients.conftest import Scripted
from tests.clients.scripted import (
    UntilCancelled,
    ours,
    queued,
    started,
    status,
    step,
    success,
)

from ditcast_client import (
    BlockingClient,
    BlockingGeneration,
    Cancelled,
    Client,
    Generation,
    NotFound,
)

PICTURE = bytes(range(256)) * 20


def public(kind: type[object]) -> set[str]:
    """Name the public methods of a class."""
    return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}


def test_both_clients_have_the_same_methods() -> None:
    """What the asynchronous client can do, the blocking one can."""
    assert public(BlockingClient) == public(Client)
    assert public(BlockingGeneration) == public(Generation)


async def test_events_and_result(server: Scripted) -> None:
    """A plain loop sees the events, and the result is there afterwards."""
    server.service.script = success(PICTURE)

    def use() -> tuple[int, bytes]:
        with BlockingClient(server.address) as client:
            generation = client.generate(prompt="a red cup")
            return len(list(generation)), generation.result().outputs[0].data

    assert await asyncio.to_thread(use) == (len(server.service.script), PICTURE)


async def test_leaving_the_loop_cancels_explicitly(server: Scripted) -> None:
    """`break` has sent CancelGeneration when the loop is left."""
    server.service.script = [queued(), started(), step(1), UntilCancelled()]

    def use() -> str:
        with BlockingClient(server.address) as client:
            generation = client.generate(prompt="a red cup")
            for event in generation:
                if event.HasField("step_completed"):
                    break
            with pytest.raises(Cancelled):
                generation.result()
            return generation.request_id

    assert [await asyncio.to_thread(use)] == server.service.cancelled


async def test_other_calls_and_errors(server: Scripted) -> None:
    """Calls give the same answers and errors."""
    server.service.cancel_status = status(StatusCode.NOT_FOUND, "nobody", ours("UNKNOWN_ID"))

    def use() -> int:
        with BlockingClient(server.address) as client:
            with pytest.raises(NotFound):
                client.cancel("nobody")
            assert client.configuration().revision == 7
            return client.capabilities().world_size

    assert await asyncio.to_thread(use) == 2


async def test_closing_ends_the_thread(server: Scripted) -> None:
    """A closed client leaves no thread and no generation behind."""
    server.service.script = [queued(), UntilCancelled()]

    def use() -> None:
        client = BlockingClient(server.address)
        next(iter(client.generate(prompt="a red cup")))
        client.close()

    await asyncio.to_thread(use)
    assert len(server.service.cancelled) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "ditcast-client"]
