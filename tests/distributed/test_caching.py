"""What the cache decided, step by step, and that it belongs to one generation alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.distributed.generations import (
    MASK,
    MASKED,
    OFF,
    fields,
    levels_apart,
    picture,
    small,
    watched,
)

from ditcast.v1.generation_pb2 import (
    CACHE_DECISION_CACHED,
    CACHE_DECISION_COMPUTED,
    CacheDecision,
    GenerationEvent,
    StepCompleted,
)
from ditcast_client import Client


def _steps(events: Sequence[GenerationEvent]) -> list[StepCompleted]:
    return [event.step_completed for event in events if event.HasField("step_completed")]


def _numbers(steps: Sequence[StepCompleted], decision: CacheDecision.ValueType) -> list[int]:
    return [step.step for step in steps if step.cache_decision == decision]


def _cfg_numbers(steps: Sequence[StepCompleted], decision: CacheDecision.ValueType) -> list[int]:
    return [step.step for step in steps if step.cfg_cache_decision == decision]


MOST = 32
"""Of 50 steps: as many as the reference configuration lets it cache, with its warm-up of 8 by 2."""


async def test_the_reference_configuration_caches_what_it_may_on_two_ranks(two: Client) -> None:
    """Both passes cache nine tenths of what they may; steps and report agree on which."""
    events, result = await watched(two.generate(**fields(num_inference_steps=50)))
    steps = _steps(events)
    report = result.cache
    assert _numbers(steps, CACHE_DECISION_COMPUTED) == list(report.computed_steps)
    assert _numbers(steps, CACHE_DECISION_CACHED) == list(report.cached_steps)
    assert _cfg_numbers(steps, CACHE_DECISION_COMPUTED) == list(report.cfg_computed_steps)
    assert _cfg_numbers(steps, CACHE_DECISION_CACHED) == list(report.cfg_cached_steps)
    assert len(report.computed_steps) + len(report.cached_steps) == 50
    assert len(report.cfg_computed_steps) + len(report.cfg_cached_steps) == 50
    for cached_steps in (report.cached_steps, report.cfg_cached_steps):
        assert 0.9 * MOST <= len(cached_steps) <= MOST
    cached = [step for step in steps if step.cache_decision == CACHE_DECISION_CACHED]
    assert all(0 <= step.residual_diff < 0.12 for step in cached)
    assert all(step.HasField("residual_diff") for step in cached)
    [memory_0, memory_1] = result.memory
    assert (memory_0.rank, memory_1.rank) == (0, 1)
    assert min(memory_0.peak_bytes, memory_1.peak_bytes, memory_1.free_bytes) > 0


@pytest.mark.parametrize("negative_prompt", [None, " "], ids=["one pass", "two passes"])
async def test_each_step_is_computed_or_cached_in_each_pass(
    two: Client, negative_prompt: str | None
) -> None:
    """Computed and cached steps add up, with one pass a step as with two."""
    asked = fields(num_inference_steps=12)
    if negative_prompt is None:
        del asked["negative_prompt"]
    events, result = await watched(two.generate(**asked))
    steps = _steps(events)
    report = result.cache
    every = list(range(1, 13))
    assert [step.step for step in steps] == every
    assert sorted([*report.computed_steps, *report.cached_steps]) == every
    assert _numbers(steps, CACHE_DECISION_CACHED) == list(report.cached_steps) != []
    of_second_pass = sorted([*report.cfg_computed_steps, *report.cfg_cached_steps])
    assert of_second_pass == ([] if negative_prompt is None else every)
    assert all(
        step.HasField("cfg_cache_decision") == (negative_prompt is not None) for step in steps
    )
    assert all(
        step.HasField("residual_diff")
        for step in steps
        if step.cache_decision == CACHE_DECISION_CACHED
    )


async def test_a_mask_decides_the_steps_that_it_names(two: Client) -> None:
    """A static step mask is followed to the letter, in both passes."""
    result = await two.generate(**fields(cache=MASKED)).result()
    computed = [step for step, value in enumerate(MASK, start=1) if value]
    assert list(result.cache.computed_steps) == computed
    assert list(result.cache.cfg_computed_steps) == computed


async def test_the_cache_of_one_request_leaves_no_trace(one: Client, two: Client) -> None:
    """Settings that came with a request end with it: the next gets the server's, to the bit."""
    configured = await two.configuration()
    asked = small(num_inference_steps=12)
    before = await picture(two, **asked)
    uncached = await picture(two, **small(num_inference_steps=12, cache=OFF))
    masked = await two.generate(**fields(cache=MASKED)).result()
    assert await picture(two, **asked) == before != uncached
    assert levels_apart(uncached, await picture(one, **asked)) <= 1
    assert await two.configuration() == configured
    assert list(masked.started.parameters.cache.db_cache.steps_computation_mask) == list(MASK)
    assert masked.receipt.configuration == configured
