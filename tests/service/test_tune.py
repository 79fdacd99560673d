"""Tune through a real channel: what is measured, refused, dropped, waited for and left."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from grpc import aio
from tests.service.conftest import Served
from tests.service.fakes import Script, completed, success
from tests.service.test_generate import reason, rich

from ditcast.v1 import acceleration_pb2 as acceleration_pb
from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1 import generation_pb2
from ditcast.v1.tuning_pb2 import TuneEvent
from ditcast_runtime.errors import QueueFull
from ditcast_runtime.events import Started
from ditcast_runtime.generation import OutputFormat, Parameters
from ditcast_runtime.settings import DBCache, load_acceleration

Call = aio.UnaryStreamCall[Any, Any]

SIDE = 32
ERRORS = {0.1: 2, 0.2: 4, 0.3: 100}
"""Levels by which a fake picture is off, by the threshold: 42.1, 36.1 and 8.1 dB."""


def cached(threshold: float) -> acceleration_pb.CacheConfig:
    """Give a candidate."""
    method = acceleration_pb.DBCache(fn_compute_blocks=1, residual_diff_threshold=threshold)
    return acceleration_pb.CacheConfig(db_cache=method)


def asked(*thresholds: float, prompts: int = 2) -> pb.TuneRequest:
    """Ask for candidates of these thresholds."""
    return pb.TuneRequest(
        generation=pb.GenerateRequest(width=SIDE, height=SIDE, num_inference_steps=2),
        prompts=[f"prompt {number}" for number in range(prompts)],
        candidates=map(cached, thresholds),
    )


def threshold_of(parameters: Parameters) -> float | None:
    """Say which candidate a generation has; None: it has no cache."""
    method = parameters.cache.method
    return method.residual_diff_threshold if isinstance(method, DBCache) else None


def painted(parameters: Parameters) -> Script:
    """Make grey pictures that are off by what the threshold says, in less time the bolder it is."""
    threshold = threshold_of(parameters)
    level = 100 + (0 if threshold is None else ERRORS[threshold])
    data = bytes([level]) * (parameters.width * parameters.height * 3)
    script = [*success(parameters, data, chunk=1000)]
    last = completed(parameters, data)
    seconds = 1.0 if threshold is None else 1 - 2 * threshold
    script[-1] = dataclasses.replace(
        last, timings=dataclasses.replace(last.timings, denoise=seconds)
    )
    return script


@pytest.fixture
def engine(served: Served) -> Served:
    """Let the fake engine paint."""
    served.engine.script = painted
    return served


async def events_of(call: Call) -> list[TuneEvent]:
    """Read a stream to its end."""
    return [response.event async for response in call]


def only(events: list[TuneEvent], kind: str) -> list[Any]:
    """Give what is of a kind."""
    return [getattr(event, kind) for event in events if event.WhichOneof("kind") == kind]


async def refused(call: Call) -> aio.AioRpcError:
    """Read a stream that does not end well."""
    with pytest.raises(aio.AioRpcError) as caught:
        await events_of(call)
    return caught.value


async def test_each_candidate_is_compared_on_each_prompt(engine: Served, tmp_path: Path) -> None:
    """Uncached first, then each, in turn and in the other direction; figures, front and file."""
    events = await events_of(engine.stub.Tune(asked(0.1, 0.2)))
    assert events[0].WhichOneof("kind") == "started"
    assert events[-1].WhichOneof("kind") == "completed"
    start = events[0].started
    assert (start.generations, start.target_psnr, len(start.candidates)) == (6, 30, 2)
    assert start.parameters.width == SIDE
    made = [
        (parameters.prompt, threshold_of(parameters))
        for parameters, _, _ in engine.engine.submitted
    ]
    assert made == [
        ("prompt 0", None),
        ("prompt 0", 0.1),
        ("prompt 0", 0.2),
        ("prompt 1", None),
        ("prompt 1", 0.2),
        ("prompt 1", 0.1),
    ]
    compared = only(events, "comparison")
    assert [(each.prompt_index, each.candidate_index) for each in compared] == [
        (0, 0),
        (0, 1),
        (1, 1),
        (1, 0),
    ]
    assert compared[0].psnr == pytest.approx(42.11, abs=0.01)
    assert compared[0].time_ratio == pytest.approx(0.8)
    assert (compared[0].denoise.ToMilliseconds(), compared[0].total_steps) == (800, 2)
    last = events[-1].completed
    assert [round(each.psnr, 1) for each in last.candidates] == [42.1, 36.1]
    assert [each.on_pareto_front for each in last.candidates] == [True, True]
    assert [each.pictures for each in last.candidates] == [2, 2]
    assert last.recommended_index == 1
    assert last.uncached_denoise.ToMilliseconds() == 1000
    file = tmp_path / "best.yaml"
    file.write_text(last.cache_dit_yaml)
    method = load_acceleration(file).cache.method
    assert isinstance(method, DBCache)
    assert method.residual_diff_threshold == 0.2


async def test_all_pictures_have_one_seed_and_are_raw(engine: Served) -> None:
    """Pictures of two seeds cannot be compared; nothing is encoded that nobody looks at."""
    events = await events_of(engine.stub.Tune(asked(0.1)))
    submitted = [parameters for parameters, _, _ in engine.engine.submitted]
    assert {parameters.seed for parameters in submitted} == {events[0].started.parameters.seed}
    assert {parameters.output.format for parameters in submitted} == {OutputFormat.RAW_RGB8}


async def test_progress_counts_generations_and_steps(engine: Served) -> None:
    """A progress event a step says which generation runs and how many there are."""
    events = await events_of(engine.stub.Tune(asked(0.1, prompts=1)))
    seen = [
        (each.generations_done, each.HasField("candidate_index"), each.step, each.total_steps)
        for each in only(events, "progress")
    ]
    assert seen == [(0, False, 1, 2), (0, False, 2, 2), (1, True, 1, 2), (1, True, 2, 2)]
    assert {each.generations_total for each in only(events, "progress")} == {2}


async def test_silence_is_filled_with_progress(engine: Served) -> None:
    """Proxies end streams that are silent."""
    go_on = asyncio.Event()
    engine.engine.script = lambda parameters: [go_on, *painted(parameters)]
    call = engine.stub.Tune(asked(0.1, prompts=1))
    async for response in call:
        if response.event.WhichOneof("kind") == "progress":
            assert response.event.progress.step == 0
            break
    go_on.set()
    assert [event.WhichOneof("kind") for event in await events_of(call)][-1] == "completed"


async def test_what_is_far_off_is_dropped_after_its_first_picture(engine: Served) -> None:
    """It has figures of what was made, stands on no front, and costs no more generations."""
    events = await events_of(engine.stub.Tune(asked(0.3, 0.1, prompts=3)))
    assert [each.dropped for each in only(events, "comparison")] == [True, False, False, False]
    last = events[-1].completed
    assert [(each.dropped, each.pictures) for each in last.candidates] == [(True, 1), (False, 3)]
    assert [each.on_pareto_front for each in last.candidates] == [False, True]
    assert last.recommended_index == 1
    assert len(engine.engine.submitted) == 1 + 2 + 2 * 2
    assert only(events, "progress")[-1].generations_total == 7


async def test_it_ends_when_nothing_is_left_to_compare(engine: Served) -> None:
    """With all of them dropped nothing is recommended, and there is no file."""
    events = await events_of(engine.stub.Tune(asked(0.3, prompts=3)))
    last = events[-1].completed
    assert (last.HasField("recommended_index"), last.cache_dit_yaml) == (False, "")
    assert len(engine.engine.submitted) == 2


async def test_without_candidates_the_usual_ones_are_tried(engine: Served) -> None:
    """Fitted to the number of steps."""
    engine.engine.script = success  # Seven bytes are no picture: it fails once it is compared.
    call: Call = engine.stub.Tune(asked(prompts=1))
    first = await anext(aiter(call))
    assert len(first.event.started.candidates) == 8
    assert first.event.started.candidates[0].db_cache.max_continuous_cached_steps == 2
    call.cancel()


async def test_all_that_is_wrong_is_said_at_once(engine: Served) -> None:
    """Of the request, of each prompt and of each candidate, before a rank is touched."""
    request = asked(0.1, -1.0)
    request.generation.width = 33
    request.generation.request_id = "mine"
    request.generation.prompt = "mine"
    request.generation.num_images = 2
    request.generation.output.format = generation_pb2.OUTPUT_FORMAT_PNG
    request.prompts.append("x" * 20_000)
    request.candidates.add().disabled.SetInParent()
    request.candidates.add()
    request.target_psnr = 70
    error = await refused(engine.stub.Tune(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = details.BadRequest()
    assert rich(error).details[1].Unpack(found)
    assert {violation.field for violation in found.field_violations} == {
        "generation.width",
        "generation.request_id",
        "generation.prompt",
        "generation.num_images",
        "generation.output",
        "prompts[2]",
        "candidates[1].db_cache.residual_diff_threshold",
        "candidates[2].disabled",
        "candidates[3]",
        "target_psnr",
    }
    assert engine.engine.submitted == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda request: request.ClearField("prompts"), "prompts"),
        (lambda request: request.prompts.extend(["a"] * 33), "prompts"),
        (lambda request: request.candidates.extend([cached(0.1)] * 33), "candidates"),
    ],
)
async def test_counts_are_bounded(
    engine: Served, change: Callable[[pb.TuneRequest], None], field: str
) -> None:
    """1 to 32 prompts, at most 32 candidates."""
    request = asked(0.1)
    change(request)
    error = await refused(engine.stub.Tune(request))
    found = details.BadRequest()
    assert rich(error).details[1].Unpack(found)
    assert [violation.field for violation in found.field_violations] == [field]


async def test_what_the_pipeline_cannot_cache_is_a_precondition(engine: Served) -> None:
    """As in Generate, under the candidate's own path."""
    request = asked(0.1)
    request.candidates.add().db_prune.fn_compute_blocks = 1
    error = await refused(engine.stub.Tune(request))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    found = details.PreconditionFailure()
    assert rich(error).details[1].Unpack(found)
    assert [violation.subject for violation in found.violations] == ["candidates[1].db_prune"]


async def test_leaving_leaves_the_generation_that_runs(engine: Served) -> None:
    """Nothing more is asked for, and the next Tune has its turn."""
    engine.engine.script = lambda parameters: [*painted(parameters)[:3], asyncio.Event()]
    call = engine.stub.Tune(asked(0.1))
    async for response in call:
        if response.event.WhichOneof("kind") == "progress":
            break
    call.cancel()
    [running] = engine.engine.generations.values()
    await asyncio.wait_for(running.left.wait(), 5)
    engine.engine.script = painted
    again = await events_of(engine.stub.Tune(asked(0.1, prompts=1)))
    assert again[-1].WhichOneof("kind") == "completed"
    assert len(engine.engine.submitted) == 1 + 2


async def test_one_runs_at_a_time(engine: Served) -> None:
    """Another one is told to try again later, and when."""
    go_on = asyncio.Event()
    engine.engine.script = lambda parameters: [go_on, *painted(parameters)]
    first = engine.stub.Tune(asked(0.1, prompts=1))
    assert (await anext(aiter(first))).event.WhichOneof("kind") == "started"
    error = await refused(engine.stub.Tune(asked(0.1)))
    assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TUNE_RUNNING")
    retry = details.RetryInfo()
    assert rich(error).details[2].Unpack(retry)
    assert retry.retry_delay.seconds > 0
    go_on.set()
    assert (await events_of(first))[-1].WhichOneof("kind") == "completed"


async def test_a_full_queue_refuses_the_first_and_delays_the_others(engine: Served) -> None:
    """What is measured already is not lost because others came."""
    full = QueueFull(2, 2, timedelta(seconds=0.05))
    engine.engine.refusal = full
    error = await refused(engine.stub.Tune(asked(0.1)))
    assert reason(error) == "QUEUE_FULL"
    engine.engine.refusal = None

    def full_after_the_first(parameters: Parameters) -> Script:
        engine.engine.refusal = full if threshold_of(parameters) is None else None
        return painted(parameters)

    engine.engine.script = full_after_the_first
    waited = False
    async for response in engine.stub.Tune(asked(0.1, prompts=1)):
        progress = response.event.progress
        if progress.state == generation_pb2.GENERATION_STATE_QUEUED and progress.generations_done:
            waited, engine.engine.refusal = True, None
    assert waited
    assert len(engine.engine.submitted) == 2


async def test_two_revisions_are_not_compared(engine: Served) -> None:
    """A Configure in between ends it: other settings may draw another picture."""

    def later(parameters: Parameters) -> Script:
        script = [*painted(parameters)]
        if threshold_of(parameters) is not None:
            assert isinstance(script[1], Started)
            script[1] = dataclasses.replace(script[1], configuration_revision=2)
        return script

    engine.engine.script = later
    error = await refused(engine.stub.Tune(asked(0.1)))
    assert (error.code(), reason(error)) == (grpc.StatusCode.ABORTED, "CONFIGURATION_CHANGED")


async def test_what_ends_a_generation_ends_it(engine: Served) -> None:
    """With the generation's own status."""
    engine.engine.script = lambda _: [QueueFull(1, 1, timedelta(seconds=3))]
    error = await refused(engine.stub.Tune(asked(0.1)))
    assert reason(error) == "QUEUE_FULL"


async def test_the_deadline_reaches_each_generation(engine: Served) -> None:
    """So that one which cannot be met is refused before it runs."""
    await events_of(engine.stub.Tune(asked(0.1), timeout=60))
    limits = [timeout for _, _, timeout in engine.engine.submitted]
    assert all(limit is not None and limit <= 61 for limit in limits)
