"""The fixed cost of a generation: all of its time at the client that is not the pipeline's."""

from __future__ import annotations

from benchmarks.figures import Figure, Subject
from benchmarks.plan import Plan, Tick
from benchmarks.processes import threads_of
from benchmarks.requests import generation, serve
from ditcast_client import Client

_TARGET = 25.0
"""Milliseconds, with a small PNG."""

_STEPS = 4


async def measure(client: Client, plan: Plan, tick: Tick) -> list[Figure]:
    """Run generations one after the other on a server that has nothing else to do."""
    # The first switches the cache, and opens the connection.
    await serve(generation(client, steps=_STEPS))
    runs = []
    for number in range(plan.fixed):
        runs.append(await serve(generation(client, steps=_STEPS, seed=number)))
        tick()
    subject = Subject("fixed", 1, threads_of(1))
    return [
        subject.figure(
            "fixed_cost",
            "Fixed cost of a generation",
            "ms",
            [(run.seconds - run.pipeline_seconds) * 1000 for run in runs],
            target=_TARGET,
            note="at the client, less prepare, denoise and decode of `Timings`; PNG, 128x128",
        ),
        subject.figure(
            "fixed_encode",
            "of which encoding and hashing",
            "ms",
            [run.encode_seconds * 1000 for run in runs],
            note="`encode` of `Timings`",
        ),
    ]
