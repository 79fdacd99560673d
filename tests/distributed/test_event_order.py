"""The order of events, as a property of every stream that ends well."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict

import pytest
from tests.distributed.generations import PROMPT, kinds, watched
from tests.distributed.servers import Server

from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast.v1.generation_pb2 import (
    OUTPUT_FORMAT_JPEG,
    OUTPUT_FORMAT_PNG,
    OUTPUT_FORMAT_RAW_RGB8,
    OUTPUT_FORMAT_WEBP,
    GenerationEvent,
    OutputOptions,
)

FORMATS = (OUTPUT_FORMAT_PNG, OUTPUT_FORMAT_JPEG, OUTPUT_FORMAT_WEBP, OUTPUT_FORMAT_RAW_RGB8)
RANKS = {"queued": 0, "started": 1, "warning": 2, "step_completed": 3, "output_chunk": 4}


def _request(dice: random.Random) -> GenerateRequest:
    request = GenerateRequest(
        prompt=PROMPT,
        seed=dice.getrandbits(64),
        num_inference_steps=dice.randint(2, 6),
        num_images=dice.choice((0, 1, 2, 3)),
        width=dice.choice((64, 96, 128)),
        height=dice.choice((64, 128)),
        output=OutputOptions(format=dice.choice(FORMATS)),
    )
    if dice.random() < 0.5:
        request.negative_prompt = " "
    if dice.random() < 0.3:
        request.guidance_scale = 2.0
    return request


@pytest.mark.parametrize(
    ("name", "seeds"),
    [("server_one", range(12)), ("server_two", range(100, 106)), ("server_other", range(200, 212))],
)
async def test_events_come_in_the_order_of_the_contract(
    name: str, seeds: range, request: pytest.FixtureRequest
) -> None:
    """Whatever is asked for: queued, started, the steps, whole outputs, completed; no gaps."""
    server: Server = request.getfixturevalue(name)
    async with server.client() as client:
        for seed in seeds:
            asked = _request(random.Random(seed))  # noqa: S311 (a test repeats itself)
            events, result = await watched(client.generate(asked))
            _check(events, asked, f"seed {seed}")
            assert len(result.outputs) == max(1, asked.num_images)


def _check(events: list[GenerationEvent], asked: GenerateRequest, what: str) -> None:
    logged = [event for event in events if not event.HasField("heartbeat")]
    named = kinds(events)
    assert [event.sequence for event in logged] == list(range(1, len(logged) + 1)), what
    assert len({event.request_id for event in events}) == 1, what
    times = [event.time.ToNanoseconds() for event in logged]
    assert times == sorted(times), what
    assert named[0] == "queued", what
    assert named.count("started") == 1, what
    assert named.count("completed") == 1, what
    assert named[-1] == "completed", what
    order = [RANKS[name] for name in named[:-1]]
    assert order == sorted(order), what
    steps = [event.step_completed for event in logged if event.HasField("step_completed")]
    assert [step.step for step in steps] == list(range(1, asked.num_inference_steps + 1)), what
    assert {step.total_steps for step in steps} == {asked.num_inference_steps}, what
    assert steps[-1].estimated_remaining.ToNanoseconds() == 0, what
    assert all(step.step_duration.ToNanoseconds() > 0 for step in steps), what
    _check_chunks(logged, what)


def _check_chunks(logged: list[GenerationEvent], what: str) -> None:
    received: dict[int, bytes] = defaultdict(bytes)
    totals: dict[int, int] = {}
    indices = []
    for event in logged:
        if not event.HasField("output_chunk"):
            continue
        chunk = event.output_chunk
        assert chunk.offset == len(received[chunk.output_index]), what
        assert 0 < len(chunk.data) <= 2**20, what
        received[chunk.output_index] += chunk.data
        assert totals.setdefault(chunk.output_index, chunk.total_bytes) == chunk.total_bytes, what
        indices.append(chunk.output_index)
    assert indices == sorted(indices), what
    outputs = logged[-1].completed.receipt.outputs
    assert [output.output_index for output in outputs] == sorted(received), what
    for output in outputs:
        data = received[output.output_index]
        assert len(data) == totals[output.output_index] == output.size_bytes, what
        assert hashlib.sha256(data).digest() == output.sha256, what
