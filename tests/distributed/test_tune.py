"""Tune and shadows on a real rank: figures that a caller can compute too, commands, leaving."""

from __future__ import annotations

import shlex
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.distributed.generations import (
    FOR_EVER,
    MASKED,
    OFF,
    fields,
    kinds,
    picture,
    small,
    watch_until,
    watched,
)
from tests.distributed.servers import Server
from tests.docs.commands import ROOT, commands

from ditcast.v1.acceleration_pb2 import CacheConfig, DBCache, TaylorSeer
from ditcast.v1.diffusion_service_pb2 import GenerateRequest, TuneRequest
from ditcast.v1.generation_pb2 import (
    OUTPUT_FORMAT_JPEG,
    GenerationState,
    OutputOptions,
)
from ditcast_client import Client, cli, exits
from ditcast_runtime import likeness
from ditcast_runtime.events import MOST_DECIBELS
from ditcast_runtime.settings import DBCache as DBCacheSettings
from ditcast_service.config import load

PAGE = ROOT / "docs" / "TUNING.md"
SIDE = 64
NEVER = CacheConfig(db_cache=DBCache(fn_compute_blocks=1, residual_diff_threshold=0))
FORECAST = CacheConfig(db_cache=MASKED.db_cache, taylor_seer=TaylorSeer(taylorseer_order=1))
LONG = CacheConfig(
    db_cache=DBCache(fn_compute_blocks=1, residual_diff_threshold=1, max_warmup_steps=1)
)
"""Makes one step of many: its shadow takes far longer."""
CANDIDATES = (NEVER, MASKED, FORECAST)
PROMPTS = ("a small red circle", "a large blue square")


def asked(**changed: Any) -> TuneRequest:  # noqa: ANN401 (fields of a message)
    """Ask for two prompts in 8 steps, three candidates, and a target that none is far under."""
    generation = GenerateRequest(
        width=SIDE,
        height=SIDE,
        num_inference_steps=8,
        true_cfg_scale=3.0,
        negative_prompt=" ",
        seed=5,
    )
    generation.MergeFrom(GenerateRequest(**changed))
    return TuneRequest(generation=generation, prompts=PROMPTS, candidates=CANDIDATES, target_psnr=1)


async def test_the_figures_are_those_of_ordinary_generations(one: Client) -> None:
    """PSNR and SSIM of the pictures that Generate makes; nothing of it is kept afterwards."""
    events = [event async for event in one.tune(asked())]
    named = [event.WhichOneof("kind") for event in events]
    assert named.count("progress") >= 2 * 4 * 8
    assert (named[0], named[-1], named.count("comparison")) == ("started", "completed", 6)
    compared = {
        (event.comparison.prompt_index, event.comparison.candidate_index): event.comparison
        for event in events
        if event.HasField("comparison")
    }
    size: Any = {"width": SIDE, "height": SIDE, "prompt": PROMPTS[1]}
    bytes_of = [await picture(one, cache=cache, **size) for cache in (OFF, MASKED)]
    pixels = [np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3) for data in bytes_of]
    masked = compared[1, 1]
    assert masked.psnr == pytest.approx(likeness.psnr(pixels[0], pixels[1]))
    assert masked.ssim == pytest.approx(likeness.ssim(pixels[0], pixels[1]))
    assert (masked.cached_steps, masked.total_steps) == (3, 8)
    # What is never reused is the same picture to the byte.
    assert [compared[prompt, 0].psnr for prompt in (0, 1)] == [MOST_DECIBELS] * 2
    assert compared[0, 0].cached_steps == 0
    last = events[-1].completed
    assert [each.pictures for each in last.candidates] == [2, 2, 2]
    assert any(each.on_pareto_front for each in last.candidates)
    assert last.HasField("recommended_index") == bool(last.cache_dit_yaml)
    assert not any(each.request_id.startswith("tune-") for each in await one.list_generations())


async def test_leaving_frees_the_ranks_at_the_next_step(one: Client) -> None:
    """A generation that would last for ever makes way for another one, and for another Tune."""
    endless = asked(num_inference_steps=FOR_EVER)
    del endless.candidates[1:]  # The others are for 8 steps.
    async with aclosing(one.tune(endless)) as events:
        async for event in events:
            if event.progress.step:
                break
    assert (await one.generate(**small()).result()).outputs
    running = GenerationState.GENERATION_STATE_RUNNING
    assert await one.list_generations(states=[running]) == []
    async with aclosing(one.tune(asked())) as events:
        assert (await anext(events)).HasField("started")


def test_the_commands_of_the_page_work(
    server_one: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, on little pictures: measured, put into force for a dry run, read by serve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DITCAST_ADDRESS", server_one.address)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    tune, configure, serve = (shlex.split(line)[1:] for line in commands(PAGE))
    assert [tune[0], configure[0], serve[0]] == ["tune", "configure", "serve"]
    little = ("--width", "64", "--height", "64", "--steps", "8", "--target-psnr", "1")
    assert cli.main([*tune, *little]) == exits.DONE
    assert cli.main([*configure, "--dry-run"]) == exits.DONE
    assert isinstance(load(serve[1:], {}).acceleration.cache.method, DBCacheSettings)
    plot = Path(tune[tune.index("--plot") + 1])
    assert plot.read_text("utf-8").startswith("<svg")


async def test_a_generation_is_compared_with_its_shadow(one: Client) -> None:
    """PSNR and SSIM of the pixels, though JPEG is what its caller gets; as part of its time."""
    size: Any = {"width": SIDE, "height": SIDE, "prompt": PROMPTS[1]}
    bytes_of = [await picture(one, cache=cache, **size) for cache in (OFF, MASKED)]
    pixels = [np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3) for data in bytes_of]
    asked_for = fields(
        cache=MASKED,
        shadow_comparison=True,
        output=OutputOptions(format=OUTPUT_FORMAT_JPEG),
        **size,
    )
    events, result = await watched(one.generate(**asked_for))
    assert result.shadow is not None
    [found] = result.shadow.outputs
    assert found.psnr == pytest.approx(likeness.psnr(pixels[0], pixels[1]))
    assert found.ssim == pytest.approx(likeness.ssim(pixels[0], pixels[1]))
    assert result.shadow.uncached_denoise.ToTimedelta() > timedelta()
    assert result.shadow.time_ratio > 0
    assert result.timings.shadow.ToTimedelta() >= result.shadow.uncached_denoise.ToTimedelta()
    # Its own steps alone: the shadow has none in its log.
    assert kinds(events).count("step_completed") == 8
    assert kinds(events)[-2:] == ["output_chunk", "completed"]


async def test_cancelling_reaches_a_shadow_that_runs(one: Client, server_one: Server) -> None:
    """The ranks leave it at the next step, and serve the next one."""
    long = fields(
        cache=LONG, shadow_comparison=True, num_inference_steps=60, width=SIDE, height=SIDE
    )
    async with one.generate(**long) as generation:
        events = aiter(generation)
        await watch_until(events, "output_chunk")
        await one.cancel(generation.request_id)
    shadow = await server_one.ended(f"{generation.request_id}/shadow")
    assert shadow["state"] == "cancelled"
    assert shadow["steps"] < 60
    assert (await one.generate(**small()).result()).outputs
