"""Pictures a second of one call with several prompts against as many calls with one each."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from benchmarks.figures import Figure, Subject
from benchmarks.plan import Plan, Tick
from benchmarks.processes import direct_batches, threads_of

_Kind = tuple[bool, int, int]
"""Cached or not, steps, and pictures in a call."""


def ticks(plan: Plan) -> int:
    """Say how often `measure` calls its tick."""
    return len(_threads()) * 2 * len(plan.batch_steps) * len(plan.batch_sizes) * plan.batch_pairs


async def measure(plan: Plan, tick: Tick) -> list[Figure]:
    """Measure with one thread, and with all that a server's only rank has."""
    figures: list[Figure] = []
    for threads in _threads():
        found: dict[_Kind, list[dict[str, Any]]] = defaultdict(list)
        async with direct_batches(plan, threads) as pairs:
            async for line in pairs:
                pair = json.loads(line)
                found[pair["cached"], pair["steps"], pair["size"]].append(pair)
                tick()
        for kind, measured in found.items():
            figures += _figures(kind, measured, Subject("batching", 1, threads))
    return figures


def _threads() -> list[int]:
    return sorted({1, threads_of(1)})


def _figures(kind: _Kind, pairs: list[dict[str, Any]], subject: Subject) -> list[Figure]:
    cached, steps, size = kind
    threads = "1 thread" if subject.threads == 1 else f"{subject.threads} threads"
    cache = "reference" if cached else "no"
    words = f"{size} in a call, {steps} steps, {cache} cache, {threads}"
    name = f"{size}_{steps}_{'reference_cache' if cached else 'no_cache'}_{subject.threads}"
    made = [
        subject.figure(
            f"batching_{name}",
            f"Pictures a second: {words}",
            "x",
            [pair["apart"] / pair["together"] for pair in pairs],
            note="paired, alternated, in one process; against as many calls",
        ),
        subject.figure(
            f"batching_cpu_{name}",
            f"Pictures a second of CPU time: {words}",
            "x",
            [pair["apart_cpu"] / pair["together_cpu"] for pair in pairs],
            note="the same pairs: what others do on the machine does not count",
        ),
        subject.figure(
            f"batching_levels_{name}",
            f"Largest difference of a picture: {words}",
            "levels",
            [pair["levels"] for pair in pairs],
            note="of 255, in any channel of any pixel, to what a call of its own made",
        ),
    ]
    if cached:
        made.append(
            subject.figure(
                f"batching_cached_{name}",
                f"Cached steps in one call less those apart: {words}",
                "steps",
                [
                    float(pair["cached_together"] - alone)
                    for pair in pairs
                    for alone in pair["cached_apart"]
                ],
                note="for each picture; in one call all have the same",
            )
        )
    return made
