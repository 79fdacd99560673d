"""ditcast beside other servers of the same pipeline: latency alone, throughput, pixels, conduct."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.figures import Figure, Table
from benchmarks.peers import conduct, throughput
from benchmarks.peers.alone import direct_request, measure_alone
from benchmarks.peers.sides import Side, batches, cache_dit_serve, ditcast, fastapi
from benchmarks.peers.summary import alone_figures, pixel_table, throughput_figures
from benchmarks.plan import Plan, Tick
from benchmarks.processes import DirectPipeline, direct_pipeline

_STARTS = {"cache-dit": cache_dit_serve, "fastapi": fastapi}
_BATCH = 8
_BATCH_WAIT = "0.05"
"""Seconds, long enough for clients that have their pictures to ask for the next ones."""


@dataclass(slots=True)
class Compared:
    """What the part gives."""

    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def ticks(plan: Plan, rivals: Sequence[str]) -> int:
    """Say how often `measure` calls its tick."""
    sides = 1 + len(rivals) + batches()
    blocks = sum(1 + sides * len(counts) for counts in _counts(plan))
    return plan.peer_alone + blocks + conduct.ticks(plan) * (1 + len(rivals))


async def measure(plan: Plan, rivals: Sequence[str], tick: Tick) -> Compared:
    """Start all sides at once, measure them by turns, and mistreat them last.

    Raises:
        NotComparable: a side whose pictures have to be the direct call's made others.
    """
    async with contextlib.AsyncExitStack() as stack:
        pipeline = await stack.enter_async_context(direct_pipeline())
        sides = [await stack.enter_async_context(ditcast())]
        sides += [await stack.enter_async_context(_STARTS[rival]()) for rival in rivals]
        alone = await measure_alone(pipeline, sides, plan, tick)
        batching = await _batching(stack)
        blocks = await _blocks(pipeline, [*sides, *batching], plan, tick)
        tables = [await conduct.table(kind, sides, plan, tick) for kind in conduct.KINDS]
    figures = alone_figures(sides, alone, plan)
    figures += throughput_figures(sides, batching, blocks, plan.peer_compared)
    return Compared(figures, [pixel_table(sides, alone, batching, blocks), *tables])


async def _batching(stack: contextlib.AsyncExitStack) -> list[Side]:
    """Start one more ditcast, which batches, where it can."""
    if not batches():
        return []
    options = ("--max-batch-size", str(_BATCH), "--max-batch-wait", _BATCH_WAIT)
    started = ditcast(*options, name="ditcast_batching", same_bits=False)
    return [await stack.enter_async_context(started)]


def _counts(plan: Plan) -> list[tuple[int, ...]]:
    """Give the numbers of clients of each block."""
    return [plan.peer_clients] * plan.peer_blocks + [(plan.peer_compared,)] * plan.peer_more_blocks


async def _blocks(
    pipeline: DirectPipeline, sides: Sequence[Side], plan: Plan, tick: Tick
) -> list[throughput.Block]:
    """Measure throughput in blocks: every side at every number of clients, in turning order."""
    blocks = []
    for number, counts in enumerate(_counts(plan)):
        seeds = tuple(range(_BATCH))
        prompts = tuple(map(throughput.prompt, seeds))
        batch = await pipeline.call(direct_request(prompts, seeds, plan))
        tick()
        block = throughput.Block(batch_rate=_BATCH / batch.seconds)
        turned = [*sides[number % len(sides) :], *sides[: number % len(sides)]]
        for clients in counts:
            for side in turned:
                load = await throughput.load(side, clients, plan, number)
                block.loads[side.name, clients] = load
                tick()
        blocks.append(block)
    return blocks
