"""Several groups of ranks behind one queue: a lost one costs its share of capacity, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Unpack

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.distributed.adapter_files import write_adapter
from tests.distributed.figures import scrape
from tests.distributed.generations import (
    MASK,
    MASKED,
    OFF,
    kinds,
    small,
    stub_of,
    watch_until,
    watched,
)
from tests.distributed.servers import START_SECONDS, Server, serve

from ditcast.v1.acceleration_pb2 import Configuration, LoadingConfig
from ditcast.v1.diffusion_service_pb2 import ConfigureRequest
from ditcast.v1.generation_pb2 import AdapterWeight
from ditcast_client import Client, Generation, Result
from ditcast_client.fields import GenerateFields

pytestmark = pytest.mark.mesh

GROUPS = 2
WINDOW_SECONDS = 20
"""In which losses count, and for which a group rests."""
LONG = 60
"""Steps during which a test has the time to do something."""
CACHED = [step for step, computed in enumerate(MASK, start=1) if not computed]
STYLE = [AdapterWeight(name="style", weight=0.8)]
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve with two groups of one rank."""
    styles = tmp_path_factory.mktemp("of-groups") / "styles"
    styles.mkdir()
    write_adapter(styles / "style.safetensors", "attn.to_q", seed=1)
    server = serve(
        folder,
        *("--groups", str(GROUPS), "--adapter-folder", str(styles)),
        *("--metrics-listen", "127.0.0.1:0", "--grace", "120"),
        *("--crash-loop-losses", "2", "--crash-loop-window", str(WINDOW_SECONDS)),
    )
    yield server
    server.clear_away()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """Connect to it once all groups serve."""
    async with server.client() as client:
        await _all_serve(client)
        yield client


async def _all_serve(client: Client) -> None:
    async with asyncio.timeout(START_SECONDS):
        while (await client.capabilities()).groups_serving < GROUPS:  # noqa: ASYNC110 (a server)
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _always_serving(server: Server) -> AsyncIterator[None]:
    """Fail if health says anything but SERVING meanwhile."""
    seen: list[int] = []

    async def follow() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watching = stub.Watch(health_pb2.HealthCheckRequest(service=""))
            async for answer in watching:
                seen.append(answer.status)  # noqa: PERF401 (it is read meanwhile)

    following = asyncio.create_task(follow())
    while not seen:  # noqa: ASYNC110 (what another task sees)
        await asyncio.sleep(0.01)
    yield
    following.cancel()
    assert seen == [SERVING]


async def _begun(
    client: Client, count: int, **changed: Unpack[GenerateFields]
) -> list[tuple[Generation, AsyncIterator[Any]]]:
    """Have as many long generations at work as there are groups, or fewer."""
    asked: GenerateFields = {**small(**changed), "num_inference_steps": LONG}
    made = [client.generate(**asked) for _ in range(count)]
    begun = [(each, aiter(each)) for each in made]
    for _, events in begun:
        await watch_until(events, "step_completed", 2)
    return begun


async def _ends(begun: list[tuple[Generation, AsyncIterator[Any]]]) -> list[Result]:
    """Read those that have begun to their ends."""
    for _, events in begun:
        async for _ in events:
            pass
    return [await generation.result() for generation, _ in begun]


async def _results(client: Client, count: int, **changed: Unpack[GenerateFields]) -> list[Result]:
    """Run so many at once."""
    made = [client.generate(**small(**changed)) for _ in range(count)]
    return list(await asyncio.gather(*(each.result() for each in made)))


async def test_generations_go_over_all_groups_with_the_same_bytes(
    server: Server, client: Client
) -> None:
    """Whichever is free takes the next; the receipt names it, and log lines and figures do."""
    results = await _results(client, 8)
    assert {result.receipt.group for result in results} == {0, 1}
    assert len({result.outputs[0].data for result in results}) == 1
    assert {result.receipt.world_size for result in results} == {1}
    for group in range(GROUPS):
        await server.logged(event="serving", group=group)
    figures = await scrape(server)
    for group in range(GROUPS):
        assert figures[f"ditcast_group_serving{{group={group}}}"] == 1
        assert figures[f"ditcast_rank_memory_peak_bytes{{group={group},rank=0}}"] > 0
    cores = len(os.sched_getaffinity(server.process.pid))
    assert results[0].receipt.threads_per_rank == max(1, cores // GROUPS)


async def test_a_killed_rank_disturbs_no_other_group(server: Server, client: Client) -> None:
    """Its generation begins again, the other's goes on; same bytes, and health stays SERVING."""
    [expected] = await _results(client, 1, num_inference_steps=LONG)
    async with _always_serving(server):
        begun = await _begun(client, GROUPS)
        server.ranks()[0].kill()
        seen = [[event async for event in events] for _, events in begun]
        results = [await generation.result() for generation, _ in begun]
        await _all_serve(client)
    restarts = [kinds(events).count("restarted") for events in seen]
    assert sorted(restarts) == [0, 1]
    lost = restarts.index(1)
    undisturbed = [event.step_completed.step for event in seen[1 - lost]]
    assert [step for step in undisturbed if step] == list(range(3, LONG + 1))
    assert {result.outputs[0].data for result in results} == {expected.outputs[0].data}
    line = await server.logged(event="the ranks were lost", request_id=begun[lost][0].request_id)
    assert line["group"] in range(GROUPS)
    figures = await scrape(server)
    died = f"ditcast_ranks_restarts_total{{cause=died,group={line['group']}}}"
    assert figures[died] == 1
    # So that the loss is not the first of several in a row.
    await _results(client, 8)


async def test_a_live_change_comes_into_force_between_generations(
    server: Server, client: Client
) -> None:
    """Both are at work and others wait: each runs with the revision that it says, none fails."""
    await _configure(server, Configuration(cache=OFF))
    begun = await _begun(client, GROUPS, cache=OFF)
    waiting = [asyncio.create_task(_checked(client)) for _ in range(4)]
    await asyncio.sleep(0)
    changed = await _configure(server, Configuration(cache=MASKED))
    later = await asyncio.gather(*(_checked(client) for _ in range(4)))
    assert {revision for revision, _ in later} == {changed.revision}
    assert all(cached == CACHED for _, cached in later)
    for revision, cached in await asyncio.gather(*waiting):
        assert revision in {changed.revision - 1, changed.revision}
        assert cached == (CACHED if revision == changed.revision else [])
    for result in await _ends(begun):
        assert result.receipt.configuration_revision == changed.revision - 1
    await _configure(server, Configuration(cache=OFF))


async def _checked(client: Client) -> tuple[int, list[int]]:
    """Run one that brings no cache; give the revision that it says, and the steps it cached."""
    events, result = await watched(client.generate(**small(num_inference_steps=len(MASK))))
    [started] = [event.started for event in events if event.WhichOneof("kind") == "started"]
    assert started.configuration_revision == result.receipt.configuration_revision
    return started.configuration_revision, list(result.cache.cached_steps)


async def test_a_reload_rolls_over_the_groups_under_load(server: Server, client: Client) -> None:
    """Nothing is refused, health stays SERVING, and every receipt has what its ranks had."""
    old = server.ranks()
    async with _always_serving(server):
        working = [asyncio.create_task(_keep_working(client, server)) for _ in range(3)]
        tiled = Configuration(loading=LoadingConfig(vae_tiling=True))
        changed = await _configure(server, tiled, "loading.vae_tiling", allow_reload=True)
        # Whatever starts from here on has it, though the other group has yet to load.
        [first] = await _results(client, 1)
        assert first.receipt.configuration_revision == changed.revision
        async with asyncio.timeout(START_SECONDS):
            while any(process.is_running() for process in old):  # noqa: ASYNC110 (processes)
                await asyncio.sleep(0.1)
        await _all_serve(client)
        results = await _results(client, 8)
        for task in working:
            task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    assert {result.receipt.group for result in results} == {0, 1}
    assert {result.receipt.configuration_revision for result in results} == {changed.revision}
    made = [result for task in working for result in task.result()]
    revisions = {result.receipt.configuration_revision for result in made}
    assert revisions == {changed.revision - 1, changed.revision}
    for result in made:
        tiling = result.receipt.configuration.loading.vae_tiling
        assert tiling is (result.receipt.configuration_revision == changed.revision)


async def _keep_working(client: Client, server: Server) -> list[Result]:
    """Run one after the other until told to stop; give what was made."""
    made: list[Result] = []
    with contextlib.suppress(asyncio.CancelledError):
        while server.alive:
            made += await _results(client, 1)
    return made


async def test_adapters_are_on_all_groups_or_on_none(client: Client) -> None:
    """Loaded once, they act on either group alike; unloaded, on neither."""
    plain = (await _results(client, 1))[0].outputs[0].data
    await client.load_adapter("style", "styles/style.safetensors")
    styled = await _results(client, 8, adapters=STYLE)
    assert {result.receipt.group for result in styled} == {0, 1}
    assert len({result.outputs[0].data for result in styled}) == 1
    assert styled[0].outputs[0].data != plain
    await client.unload_adapter("style")
    assert {result.outputs[0].data for result in await _results(client, 8)} == {plain}


async def test_a_group_that_is_lost_again_and_again_rests_while_the_other_serves(
    server: Server, client: Client
) -> None:
    """Health stays SERVING; after the window it is tried again, and serves."""
    async with _always_serving(server):
        before = {process.pid for process in server.ranks()}
        server.ranks()[-1].kill()
        await _new_rank(server, before, kill=True)
        line = await server.logged(event="the ranks rest before they are tried again")
        assert (await client.capabilities()).groups_serving == GROUPS - 1
        results = await _results(client, 4)
        assert {result.receipt.group for result in results} == {1 - line["group"]}
        figures = await scrape(server)
        assert figures[f"ditcast_group_serving{{group={line['group']}}}"] == 0
        await _all_serve(client)
        assert {result.receipt.group for result in await _results(client, 8)} == {0, 1}


async def _new_rank(server: Server, known: set[int], *, kill: bool) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            for process in server.ranks():
                if process.pid not in known:
                    if kill:
                        process.kill()
                    return
            await asyncio.sleep(0.02)


async def test_all_that_runs_and_waits_is_finished_before_the_end(
    server: Server, client: Client
) -> None:
    """SIGTERM with both at work and four waiting: six results, and no process is left."""
    begun = await _begun(client, GROUPS)
    waiting = [client.generate(**small(seed=seed)) for seed in range(4)]
    queues = [aiter(each) for each in waiting]
    for queue in queues:
        await watch_until(queue, "queued")
    server.terminate()
    made = await _ends([*begun, *zip(waiting, queues, strict=True)])
    assert {result.receipt.group for result in made} == {0, 1}
    server.stop()


async def _configure(
    server: Server, configuration: Configuration, *mask: str, allow_reload: bool = False
) -> Configuration:
    """Send one Configure and give what is in force."""
    request = ConfigureRequest(
        configuration=configuration,
        update_mask=FieldMask(paths=mask),
        allow_reload=allow_reload,
    )
    async with stub_of(server.address) as stub:
        return (await stub.Configure(request, timeout=START_SECONDS)).configuration
