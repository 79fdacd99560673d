"""Leaving, coming back, watching and listing, over the real ledger and a real channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from grpc import aio
from tests.service.ledger_engine import LedgerEngine, until
from tests.service.test_generate import events_of, reason

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1 import generation_pb2
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_runtime.errors import NotServing, RanksLost
from ditcast_service.callers import Caller, Scope
from ditcast_service.config import ServerConfig
from ditcast_service.gate import Gate
from ditcast_service.health import Health
from ditcast_service.server import build, listen, register
from ditcast_service.servicer import DiffusionServicer

if TYPE_CHECKING:  # It is there for type checkers alone.
    from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceAsyncStub

Call = aio.UnaryStreamCall[Any, Any]
_SOON = timedelta(seconds=2)


@dataclass
class Serving:
    """A server over the ledger, and how to reach it."""

    engine: LedgerEngine
    stub: DiffusionServiceAsyncStub
    calls: list[Call] = field(default_factory=list)
    """Held, because gRPC cancels what nobody holds."""

    def watch(self, request_id: str = "mine", after: int = 0) -> Call:
        """Watch a generation."""
        request = pb.WatchGenerationRequest(request_id=request_id, after_sequence=after)
        return self.stub.WatchGeneration(request)

    def generate(self, request_id: str = "mine", **fields: Any) -> Call:  # noqa: ANN401
        """Ask for a generation."""
        request = pb.GenerateRequest(prompt="a circle", seed=1, request_id=request_id, **fields)
        call: Call = self.stub.Generate(request)
        self.calls.append(call)
        return call


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    """Serve with little memory, so that results lie on disk."""
    config = ServerConfig(
        retention=30, retention_memory_bytes=4, heartbeat_interval=0.05, reader_timeout=0.5
    )
    engine = LedgerEngine(config, tmp_path)
    server = build(config)
    register(server, DiffusionServicer(cast("Any", engine), config), Health())
    [address] = listen(server, ["127.0.0.1:0"])
    await server.start()
    try:
        async with aio.insecure_channel(address) as channel:
            yield Serving(engine, DiffusionServiceStub(channel))
    finally:
        await server.stop(None)


def without_heartbeats(events: list[GenerationEvent]) -> list[bytes]:
    """Give the events of the log as they came over the wire."""
    return [
        event.SerializeToString(deterministic=True)
        for event in events
        if event.WhichOneof("kind") != "heartbeat"
    ]


async def refused(call: Call, seen: list[GenerationEvent] | None = None) -> aio.AioRpcError:
    """Read what is left of a stream that ends with a status other than OK."""
    try:
        while True:
            response: Any = await call.read()
            if response is aio.EOF:
                break
            if seen is not None:
                seen.append(response.event)
    except aio.AioRpcError as error:
        return error
    pytest.fail("it ended with OK")


async def test_every_reader_gets_the_same_bytes(serving: Serving) -> None:
    """Who asked, who asks again, who watches live, and who comes later and reads from disk."""
    asked, again = serving.generate(), serving.generate()
    reading = [asyncio.create_task(events_of(call)) for call in (asked, again)]
    generation = await serving.engine.run()
    watched = asyncio.create_task(events_of(serving.watch()))
    await serving.engine.until_readers("mine", 3)
    serving.engine.finish(generation, b"a picture of some bytes")
    first, *others = [without_heartbeats(events) for events in await asyncio.gather(*reading)]
    others.append(without_heartbeats(await watched))
    await serving.engine.ledger._retention.idle()
    assert generation.log.memory_bytes == 0
    others.append(without_heartbeats(await events_of(serving.watch())))
    others.append(without_heartbeats(await events_of(serving.generate())))
    assert others == [first] * 4
    assert len(serving.engine.submissions) == 1
    for after in range(len(first) + 1):
        rest = await events_of(serving.watch(after=after))
        assert without_heartbeats(rest) == first[after:]


async def test_what_cannot_be_watched(serving: Serving) -> None:
    """An id is required and known, and nobody has seen what has not happened."""
    assert reason(await refused(serving.watch("nobody"))) == "GENERATION_NOT_FOUND"
    assert (await refused(serving.watch(""))).code() is grpc.StatusCode.INVALID_ARGUMENT
    call = serving.generate()
    await call.read()
    beyond = await refused(serving.watch(after=2))
    assert beyond.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "after_sequence: 2 is beyond the last event, 1" in str(beyond.details())


async def test_a_watcher_is_a_reader_with_heartbeats(serving: Serving) -> None:
    """It keeps the generation alive, hears of silence, and its end can be the end of it."""
    asked = serving.generate()
    await asked.read()
    watched: Call = serving.watch(after=1)
    beat: Any = await watched.read()
    assert beat.event.heartbeat.state == generation_pb2.GENERATION_STATE_QUEUED
    assert beat.event.sequence == 1
    asked.cancel()
    await serving.engine.until_readers("mine", 1)
    await serving.engine.run()
    watched.cancel()
    await serving.engine.until_readers("mine", 0)
    assert serving.engine.left == ["mine"]
    late = await refused(serving.watch())
    assert late.code() is grpc.StatusCode.CANCELLED


async def test_a_slow_watcher_is_ended_and_may_come_back(serving: Serving) -> None:
    """READER_TIMEOUT ends one stream; the rest is there for who comes again."""
    asked = asyncio.create_task(events_of(serving.generate()))
    generation = await serving.engine.run()
    data = bytes(20 * 2**20)
    slow: Call = serving.watch()
    first: Any = await slow.read()
    serving.engine.finish(generation, data, 2**18)
    await asked
    await serving.engine.until_readers("mine", 0)
    seen = [first.event]
    ended = await refused(slow, seen)
    assert reason(ended) == "READER_TIMEOUT"
    rest = await events_of(serving.watch(after=seen[-1].sequence))
    log = without_heartbeats([*seen, *rest])
    assert log == without_heartbeats(await events_of(serving.watch()))


async def test_within_the_window_it_goes_on(serving: Serving) -> None:
    """A reader that comes back in time finds it running; one that does not, cancelled."""
    for request_id, window in (("back", 30_000), ("gone", 100)):
        wanted = pb.GenerateRequest()
        wanted.reattach_window.FromMilliseconds(window)
        call = serving.generate(request_id, reattach_window=wanted.reattach_window)
        await call.read()
        generation = await serving.engine.run(1)
        call.cancel()
        await serving.engine.until_readers(request_id, 0)
        serving.engine.step(generation, 2)
        if request_id == "back":
            watched = asyncio.create_task(events_of(serving.watch(request_id, after=1)))
            await serving.engine.until_readers(request_id, 1)
            serving.engine.finish(generation)
            assert (await watched)[-1].HasField("completed")
    await until(lambda: serving.engine.left == ["gone"])
    assert (await refused(serving.watch("gone"))).code() is grpc.StatusCode.CANCELLED


async def test_what_continues_can_be_fetched_afterwards(serving: Serving) -> None:
    """CONTINUE needs no reader, and the deadline of the RPC ends the RPC alone."""
    policy = generation_pb2.DISCONNECT_POLICY_CONTINUE
    request = pb.GenerateRequest(prompt="a circle", request_id="mine", on_disconnect=policy)
    call: Call = serving.stub.Generate(request, timeout=0.3)
    await call.read()
    generation = await serving.engine.run()
    await refused(call)
    await serving.engine.until_readers("mine", 0)
    serving.engine.finish(generation)
    assert (await events_of(serving.watch()))[-1].HasField("completed")
    assert serving.engine.left == []


@pytest.mark.parametrize("failure", [NotServing, RanksLost])
async def test_what_ended_unavailable_frees_its_id(serving: Serving, failure: type) -> None:
    """The same id renders anew; what ended otherwise keeps it."""
    made = {NotServing: NotServing("DRAINING", _SOON), RanksLost: RanksLost(1, "killed", _SOON)}
    call = serving.generate()
    await call.read()
    generation = await serving.engine.run()
    serving.engine.ledger.end(generation, made[failure])
    await refused(call)
    assert reason(await refused(serving.watch())) == "GENERATION_NOT_FOUND"
    again = serving.generate()
    await again.read()
    assert len(serving.engine.submissions) == 2
    serving.engine.cancel("mine", "")
    await refused(again)
    assert (await refused(serving.generate())).code() is grpc.StatusCode.CANCELLED
    assert len(serving.engine.submissions) == 2


async def listed(serving: Serving, **fields: Any) -> pb.ListGenerationsResponse:  # noqa: ANN401
    """Ask for a page."""
    return await serving.stub.ListGenerations(pb.ListGenerationsRequest(**fields))


async def test_a_list_says_where_each_generation_is(serving: Serving) -> None:
    """The newest first, with times, steps, place and readers."""
    for name in ("done", "running", "first", "second"):
        await serving.generate(name).read()
    serving.engine.finish(await serving.engine.run())
    await serving.engine.run(1)
    second, first, running, done = (await listed(serving)).generations
    assert [each.request_id for each in (second, first)] == ["second", "first"]
    assert [(each.position, each.HasField("position")) for each in (first, second)] == [
        (0, True),
        (1, True),
    ]
    assert (running.step, running.total_steps, running.attempt) == (1, 20, 1)
    assert (running.state, running.readers, running.configuration_revision) == (2, 1, 1)
    assert not running.HasField("position")
    assert (first.attempt, first.configuration_revision, first.HasField("start_time")) == (0, 0, 0)
    assert done.state == generation_pb2.GENERATION_STATE_SUCCEEDED
    assert first.priority == generation_pb2.PRIORITY_NORMAL
    assert done.create_time.ToDatetime() <= done.start_time.ToDatetime()
    assert (done.expire_time.ToDatetime() - done.end_time.ToDatetime()).total_seconds() == 30
    states = [generation_pb2.GENERATION_STATE_RUNNING, generation_pb2.GENERATION_STATE_SUCCEEDED]
    some = await listed(serving, states=states)
    assert [each.request_id for each in some.generations] == ["running", "done"]


async def test_pages_are_stable_while_generations_come_and_go(serving: Serving) -> None:
    """No page repeats or skips what was there all the time."""
    for number in range(7):
        await serving.generate(str(number)).read()
    page = await listed(serving, page_size=3)
    seen = [each.request_id for each in page.generations]
    await serving.generate("newer").read()
    for gone in ("5", "3"):
        serving.engine.ledger.end(serving.engine.find(gone, ""), NotServing("DRAINING", _SOON))
    while page.next_page_token:
        page = await listed(serving, page_size=3, page_token=page.next_page_token)
        seen += [each.request_id for each in page.generations]
    assert seen == ["6", "5", "4", "2", "1", "0"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_size": 1001}, "page_size"),
        ({"page_token": "!"}, "page_token"),
        ({"page_token": "AAAA"}, "page_token"),
        ({"page_token": "ü"}, "page_token"),
        ({"states": [2, 0]}, "states[1]"),
        ({"states": [99]}, "states[0]"),
    ],
)
async def test_a_page_that_cannot_be(serving: Serving, fields: dict[str, Any], field: str) -> None:
    """Sizes, tokens and states out of range are INVALID_ARGUMENT, by their paths."""
    with pytest.raises(aio.AioRpcError) as error:
        await listed(serving, **fields)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.value.details()).startswith(field)


async def test_ids_and_lists_are_each_callers_own(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One id of two callers is two generations, and neither sees the other's."""
    await serving.generate().read()
    stranger = Caller("somebody else", frozenset({Scope.GENERATE}))
    monkeypatch.setattr(Gate, "admit", lambda *_: stranger)
    assert reason(await refused(serving.watch())) == "GENERATION_NOT_FOUND"
    assert list((await listed(serving)).generations) == []
    await serving.generate(num_images=2).read()
    assert [each.identity for each in serving.engine.submissions] == ["", "somebody else"]
    monkeypatch.setattr(Gate, "admit", lambda *_: Caller("operators", frozenset(Scope)))
    assert len((await listed(serving)).generations) == 2
