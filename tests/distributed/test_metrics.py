"""The figures of a live server are what happened to it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import pytest
from tests.distributed.figures import grown, scrape, text
from tests.distributed.generations import FOR_EVER, fields, occupied, small, watch_until, watched
from tests.distributed.servers import MortalServers, Server

from ditcast_client import Client, errors


async def test_a_generation_leaves_its_figures(one: Client, server_one: Server) -> None:
    """Steps, votes, stages, bytes and memory are those of its own receipt and timings."""
    before = await scrape(server_one)
    events, result = await watched(one.generate(**fields(seed=301)))
    rpcs = "ditcast_rpcs_total{code=OK,method=Generate}"
    after = await grown(server_one, before, rpcs, 1)
    grew = {name: after[name] - before[name] for name in after}
    timings = events[-1].completed.timings
    assert grew["ditcast_generations_ended_total{code=OK,reason=}"] == 1
    assert grew["ditcast_generations_accepted_total{priority=normal}"] == 1
    assert grew["ditcast_steps_total{decision=computed}"] == 8
    assert grew["ditcast_step_seconds_count{decision=computed}"] == 8
    # Prepared, 8 steps, the end.
    assert grew["ditcast_votes_total{verdict=go_on}"] == 10
    denoise = grew["ditcast_generation_stage_seconds_sum{stage=denoise}"]
    assert denoise == pytest.approx(timings.denoise.ToTimedelta().total_seconds(), abs=1e-3)
    total = grew["ditcast_generation_seconds_sum"]
    assert total == pytest.approx(timings.total.ToTimedelta().total_seconds(), abs=1e-3)
    assert grew["ditcast_output_bytes_total"] == len(result.outputs[0].data)
    assert grew["ditcast_encodes_total{format=raw_rgb8}"] == 1
    assert grew["ditcast_first_event_seconds_count"] == 1
    [memory] = events[-1].completed.memory
    assert after["ditcast_rank_memory_peak_bytes{group=0,rank=0}"] == memory.peak_bytes
    assert after["ditcast_phase{phase=serving}"] == 1
    assert after["ditcast_generations_running"] == 0
    assert after["ditcast_queue_depth{priority=normal}"] == 0


async def test_texts_that_come_again_are_counted_as_reused(one: Client, server_one: Server) -> None:
    """Two texts in each of two generations: by the second, none is encoded."""
    before = await scrape(server_one)
    for seed in (305, 306):
        asked = small(seed=seed, prompt="of this test alone", negative_prompt="and so is this")
        await one.generate(**asked).result()
    after = await scrape(server_one)
    for result in ("encoded", "reused"):
        name = f"ditcast_prompts_total{{result={result}}}"
        assert after[name] - before[name] == 2


async def test_waiting_running_and_cancelled_ones_are_counted(
    one: Client, server_one: Server
) -> None:
    """One keeps the ranks, one waits; both are cancelled, one of them by the ranks' vote."""
    before = await scrape(server_one)
    async with occupied(one, fields(seed=302)) as running:
        waiting = one.generate(**small(seed=303))
        events = aiter(waiting)  # Kept: one that is dropped cancels its generation.
        await anext(events)
        busy = await scrape(server_one)
        await waiting.close()
        assert busy["ditcast_queue_depth{priority=normal}"] == 1
        assert busy["ditcast_generations_running"] == 1
        assert busy["ditcast_readers"] == 2
        assert busy["ditcast_in_flight_bytes"] >= 128 * 128 * 3
        await running.cancel()
    votes = "ditcast_votes_total{verdict=cancel}"
    after = await grown(server_one, before, votes, 1)
    assert after[votes] - before[votes] == 1
    ended = "ditcast_generations_ended_total{code=CANCELLED,reason=CANCELLED}"
    assert after[ended] - before[ended] == 2
    assert after["ditcast_queue_depth{priority=normal}"] == 0


async def test_a_refusal_counts_as_an_rpc_and_as_no_generation(
    one: Client, server_one: Server
) -> None:
    """Its code is the status that its caller got."""
    before = await scrape(server_one)
    with pytest.raises(errors.InvalidArgument):
        await one.generate(**fields(width=17)).result()
    refused = "ditcast_rpcs_total{code=INVALID_ARGUMENT,method=Generate}"
    after = await grown(server_one, before, refused, 1)
    assert after[refused] - before[refused] == 1
    accepted = "ditcast_generations_accepted_total{priority=normal}"
    assert after[accepted] == before[accepted]


async def test_no_label_is_a_callers(one: Client, server_one: Server) -> None:
    """What callers choose never becomes a series: neither ids nor prompts."""
    asked = small(seed=304, prompt="a-prompt-of-mine", request_id="an-id-of-mine")
    await one.generate(**asked).result()
    exposition = await text(server_one)
    assert "of-mine" not in exposition
    assert "ditcast_generations_ended_total" in exposition


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_promtool_finds_nothing_wrong(server_one: Server) -> None:
    """Names, units and help texts are as Prometheus wants them."""
    given = await text(server_one)
    checked = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=given,
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


async def test_lost_ranks_are_counted_by_cause(mortals: MortalServers) -> None:
    """A killed rank is a process that died; the generation ends UNAVAILABLE."""
    server = mortals.get(2)
    async with server.client() as client:
        before = await scrape(server)
        doomed = client.generate(**fields(num_inference_steps=FOR_EVER))
        events = aiter(doomed)
        await watch_until(events, "started")
        server.ranks()[1].kill()
        with pytest.raises(errors.Unavailable):
            await watch_until(events, "completed")
        await client.generate(**small()).result()
        after = await scrape(server)
    assert (
        after["ditcast_ranks_restarts_total{cause=died,group=0}"]
        == 1 + before["ditcast_ranks_restarts_total{cause=died,group=0}"]
    )
    lost = "ditcast_generations_ended_total{code=UNAVAILABLE,reason=RANKS_LOST}"
    assert after[lost] == before[lost] + 1
