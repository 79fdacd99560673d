"""Whatever breaks the connection, wherever: each event once and in order, and one generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc import StatusCode
from tests.clients.conftest import Scripted
from tests.clients.proxy import Proxy, proxy_to
from tests.clients.scripted import (
    Once,
    UntilCancelled,
    ours,
    queued,
    started,
    status,
    step,
    success,
)

from ditcast.v1.generation_pb2 import (
    DisconnectPolicy,
    GenerationEvent,
    GenerationState,
    GenerationSummary,
)
from ditcast_client import (
    AlreadyExists,
    Cancelled,
    Client,
    Generation,
    NotFound,
    ResourceExhausted,
    TransportBroken,
    Unavailable,
)
from ditcast_client.attachment import Patience

PICTURE = bytes(range(256)) * 20
LENGTH = len(success(PICTURE))
BROKEN = status(StatusCode.UNAVAILABLE, "the word of a proxy")


@pytest.fixture
async def proxy(server: Scripted) -> AsyncIterator[Proxy]:
    """Stand between client and server."""
    server.service.script = success(PICTURE)
    async with proxy_to(server.address) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    """Connect through the proxy."""
    async with Client(proxy.address, reattach=timedelta(seconds=20)) as client:
        yield client


async def follow(
    generation: Generation, at: Callable[[GenerationEvent], object] = lambda _: None
) -> list[GenerationEvent]:
    """Watch to the end, doing something at each event."""
    events = []
    async for event in generation:
        events.append(event)
        done = at(event)
        if isinstance(done, Awaitable):
            await done
    return events


def sequences(events: list[GenerationEvent]) -> list[int]:
    """Give the numbers of the events."""
    return [event.sequence for event in events]


@pytest.mark.parametrize("where", range(1, LENGTH + 1))
async def test_a_cut_at_any_event(
    client: Client, server: Scripted, proxy: Proxy, where: int
) -> None:
    """The client comes back after the last event it has; the server renders once."""
    generation = client.generate(prompt="a red cup")
    events = await follow(
        generation, lambda event: proxy.cut() if event.sequence == where else None
    )
    assert sequences(events) == list(range(1, LENGTH + 1))
    assert (await generation.result()).outputs[0].data == PICTURE
    assert server.service.rendered == [generation.request_id]
    assert server.service.cancelled == []
    assert all(watch.after_sequence >= where for watch in server.service.watches)


async def test_cuts_at_any_byte(server: Scripted, proxy: Proxy) -> None:
    """Also within a message, within headers, and again and again."""
    async with Client(proxy.address) as client:
        await client.generate(prompt="a red cup").result()
    total = proxy.passed
    for first in range(0, total, 431):
        server.service.rendered.clear()
        begun = proxy.passed
        proxy.cut_after(begun + first, begun + first + 900, begun + first + 2500)
        async with Client(proxy.address) as client:
            generation = client.generate(prompt="a red cup")
            assert sequences(await follow(generation)) == list(range(1, LENGTH + 1))
            assert (await generation.result()).outputs[0].data == PICTURE
        assert server.service.rendered == [generation.request_id]
        proxy.cut_after()
    assert proxy.connections > 2 * (total // 431)


@pytest.mark.parametrize("code", [StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.UNAVAILABLE])
@pytest.mark.parametrize("where", [0, 1, 5, LENGTH - 1])
async def test_a_foreign_status_is_a_break(
    client: Client, server: Scripted, code: StatusCode, where: int
) -> None:
    """What proxies say for a lost server is no end of the generation."""
    script = list(success(PICTURE))
    server.service.script = [*script[:where], Once(status(code, "502")), *script[where:]]
    generation = client.generate(prompt="a red cup")
    assert sequences(await follow(generation)) == list(range(1, LENGTH + 1))
    assert server.service.rendered == [generation.request_id]


async def test_a_lost_process_is_asked_again(
    client: Client, server: Scripted, proxy: Proxy
) -> None:
    """NOT_FOUND: the same id and content once more, after a `restarted`; outputs begin anew."""
    server.service.script = [*success(PICTURE)[: LENGTH - 2], UntilCancelled()]
    generation = client.generate(prompt="a red cup")

    def lose(event: GenerationEvent) -> None:
        if event.sequence == LENGTH - 2 and len(server.service.rendered) == 1:
            server.service.script = success(PICTURE)
            server.service.known.clear()
            proxy.cut()

    events = await follow(generation, lose)
    expected = [*range(1, LENGTH - 1), 0, *range(1, LENGTH + 1)]
    assert sequences(events) == expected
    assert events[LENGTH - 2].restarted.attempt == 2
    assert (await generation.result()).outputs[0].data == PICTURE
    first, second = server.service.requests
    assert first == second


async def test_a_server_that_loads_is_waited_for(
    client: Client, server: Scripted, proxy: Proxy
) -> None:
    """Who lost its process comes back UNAVAILABLE at first, with a delay of its own."""
    soon = RetryInfo(retry_delay=Duration(nanos=200_000_000))
    loading = Once(status(StatusCode.UNAVAILABLE, "loading", ours("LOADING"), soon))

    def lose(event: GenerationEvent) -> None:
        if event.sequence == 3 and len(server.service.requests) == 1:
            server.service.known.clear()
            server.service.script = [loading, *success(PICTURE)]
            proxy.cut()

    generation = client.generate(prompt="a red cup")
    await follow(generation, lose)
    assert loading.used
    assert len(server.service.requests) == 3
    assert (await generation.result()).outputs[0].data == PICTURE


async def test_a_log_that_is_shorter_than_what_came_is_another_ones(
    client: Client, server: Scripted, proxy: Proxy
) -> None:
    """Then somebody else's request took the id's place in a new process: it is read from 1."""
    field = BadRequest.FieldViolation(field="after_sequence", description="beyond the last event")
    details = (ours("INVALID_REQUEST"), BadRequest(field_violations=[field]))
    server.service.watch_ends = [status(StatusCode.INVALID_ARGUMENT, "beyond", *details)]
    generation = client.generate(prompt="a red cup")
    await follow(generation, lambda event: proxy.cut() if event.sequence == 4 else None)
    assert (await generation.result()).outputs[0].data == PICTURE
    assert len(server.service.requests) == 2


async def test_what_the_server_itself_says_is_final(client: Client, server: Scripted) -> None:
    """A status with our ErrorInfo ends the generation, also right after coming back."""
    for end, kind in (
        (status(StatusCode.UNAVAILABLE, "poison", ours("LOSES_RANKS")), Unavailable),
        (status(StatusCode.RESOURCE_EXHAUSTED, "disk", ours("RESULT_NOT_KEPT")), ResourceExhausted),
        (status(StatusCode.ALREADY_EXISTS, "used", ours("REQUEST_ID_REUSED")), AlreadyExists),
    ):
        server.service.script = [queued(), started(), Once(BROKEN), step(1), end]
        with pytest.raises(kind):
            await client.generate(prompt="a red cup").result()
    assert len(server.service.requests) == 3
    assert server.service.cancelled == []


async def test_a_reader_that_was_too_slow_comes_back(client: Client, server: Scripted) -> None:
    """READER_TIMEOUT ends a stream, not what is kept for who reads on."""
    slow = Once(status(StatusCode.RESOURCE_EXHAUSTED, "slow", ours("READER_TIMEOUT")))
    script = list(success(PICTURE))
    server.service.script = [*script[:4], slow, *script[4:]]
    assert sequences(await follow(client.generate(prompt="x"))) == list(range(1, LENGTH + 1))


async def test_a_server_that_comes_back_in_time(
    client: Client, server: Scripted, proxy: Proxy
) -> None:
    """While nobody listens, the client tries on."""

    async def restart(event: GenerationEvent) -> None:
        if event.sequence == 3:
            proxy.shut()
            asyncio.get_running_loop().call_later(
                0.5, lambda: tasks.append(asyncio.ensure_future(proxy.open()))
            )

    tasks: list[asyncio.Future[None]] = []
    generation = client.generate(prompt="a red cup")
    assert sequences(await follow(generation, restart)) == list(range(1, LENGTH + 1))
    assert len(server.service.rendered) == 1


async def test_patience_ends(server: Scripted, proxy: Proxy) -> None:
    """A server that stays away is given up, with what broke the connection."""
    server.service.script = [queued(), started(), UntilCancelled()]
    async with Client(proxy.address, reattach=timedelta(seconds=0.5)) as client:
        generation = client.generate(prompt="a red cup")
        with pytest.raises(TransportBroken):
            await follow(generation, lambda event: proxy.shut() if event.sequence == 2 else None)
        with pytest.raises(TransportBroken):
            await generation.result()


async def test_patience_begins_anew_with_each_event(server: Scripted, proxy: Proxy) -> None:
    """However often a connection breaks: what counts is how long nothing came."""
    server.service.script = [
        item for event in success(PICTURE) for item in (event, Once(BROKEN), Once(BROKEN))
    ]
    async with Client(proxy.address, reattach=timedelta(seconds=0.6)) as client:
        assert (await client.generate(prompt="a red cup").result()).outputs[0].data == PICTURE


async def test_leaving_while_out_of_reach_ends_at_once(server: Scripted, proxy: Proxy) -> None:
    """Nobody who leaves waits for a server that is away."""
    server.service.script = [queued(), started(), UntilCancelled()]
    async with Client(proxy.address, reattach=timedelta(days=1)) as client:
        generation = client.generate(prompt="a red cup")
        away = asyncio.Event()

        def leave(event: GenerationEvent) -> None:
            if event.sequence == 2:
                proxy.shut()
                away.set()

        watching = asyncio.create_task(follow(generation, leave))
        await away.wait()
        await asyncio.sleep(0.3)
        await asyncio.wait_for(generation.close(), 10)
        with pytest.raises(Cancelled):
            await asyncio.wait_for(watching, 10)


async def test_nothing_is_tried_again_without_patience(server: Scripted, proxy: Proxy) -> None:
    """`reattach` of 0, and a request that is only validated, end at the first break."""
    server.service.script = [queued(), Once(BROKEN), *success(PICTURE)[1:]]
    async with Client(proxy.address, reattach=timedelta(0)) as client:
        with pytest.raises(TransportBroken):
            await client.generate(prompt="a red cup").result()
    server.service.script = [Once(BROKEN), started()]
    async with Client(proxy.address) as client:
        with pytest.raises(TransportBroken):
            await client.generate(prompt="a red cup", validate_only=True).result()
    assert server.service.watches == []


async def test_leaving_what_may_continue_cancels_nothing(client: Client, server: Scripted) -> None:
    """Who asks for CONTINUE wants it to go on without readers."""
    server.service.script = [queued(), started(), UntilCancelled()]
    policy = DisconnectPolicy.DISCONNECT_POLICY_CONTINUE
    async with client.generate(prompt="a red cup", on_disconnect=policy) as generation:
        await anext(aiter(generation))
    await asyncio.wait_for(server.service.streams_ended.wait(), 10)
    assert server.service.cancelled == []
    assert await generation.cancel() == GenerationState.GENERATION_STATE_RUNNING


async def test_watching(client: Client, server: Scripted, proxy: Proxy) -> None:
    """From the first event it is like one's own; from the middle it has events and no result."""
    server.service.known.add("theirs")
    generation = client.watch("theirs")
    cut = await follow(generation, lambda event: proxy.cut() if event.sequence == 6 else None)
    assert sequences(cut) == list(range(1, LENGTH + 1))
    assert (await generation.result()).outputs[0].data == PICTURE
    rest = client.watch("theirs", after_sequence=LENGTH - 3)
    assert sequences(await follow(rest)) == [LENGTH - 2, LENGTH - 1, LENGTH]
    with pytest.raises(RuntimeError, match="first event"):
        await rest.result()
    assert await follow(client.watch("theirs", after_sequence=LENGTH)) == []
    with pytest.raises(NotFound):
        await client.watch("nobody").result()
    assert server.service.requests == []


async def test_leaving_a_watch_cancels_nothing(client: Client, server: Scripted) -> None:
    """It is somebody else's generation."""
    server.service.known.add("theirs")
    server.service.script = [queued(), started(), UntilCancelled()]
    async with client.watch("theirs") as generation:
        await anext(aiter(generation))
    await asyncio.wait_for(server.service.streams_ended.wait(), 10)
    assert server.service.cancelled == []


async def test_a_list_is_of_all_pages(client: Client, server: Scripted) -> None:
    """Pages are the client's own business; a limit asks for no more than it says."""
    running, failed = (
        GenerationState.GENERATION_STATE_RUNNING,
        GenerationState.GENERATION_STATE_FAILED,
    )
    server.service.generations = [
        GenerationSummary(request_id=str(number), state=running if number % 2 else failed)
        for number in range(2500)
    ]
    assert len(await client.list_generations()) == 2500
    assert [request.page_size for request in server.service.lists] == [1000] * 3
    some = await client.list_generations(states=[failed], limit=3)
    assert [each.request_id for each in some] == ["0", "2", "4"]
    assert server.service.lists[-1].page_size == 3


def test_delays_grow_and_differ() -> None:
    """Clients that lost the same server must not come back as one."""
    patience = Patience(first_delay=0.1, max_delay=5)
    for tries, longest in ((0, 0.1), (3, 0.8), (10, 5.0), (1000, 5.0)):
        delays = {patience.delay(tries) for _ in range(50)}
        assert len(delays) > 1
        assert all(longest / 2 <= delay <= longest * 1.5 for delay in delays)
