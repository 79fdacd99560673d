"""The parts that were chosen, run one after the other over servers that they share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from rich.progress import Progress

from benchmarks import (
    batching,
    caching,
    changes,
    fixed,
    growth,
    latency,
    overlap,
    previews,
    ratio,
    start,
    steps,
)
from benchmarks.figures import Figure, Table
from benchmarks.peers import comparison as peers
from benchmarks.plan import Plan, Tick
from benchmarks.processes import DirectPipeline, direct_pipeline, serving
from ditcast_client import Client

PARTS = (
    "steps",
    "fixed",
    "ratio",
    "previews",
    "caching",
    "batching",
    "latency",
    "changes",
    "overlap",
    "start",
    "growth",
    "peers",
)
_SHARE_A_SERVER = {"fixed", "ratio", "previews", "latency"}


@dataclass(slots=True)
class Found:
    """What a run gave."""

    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


class Suite:
    """The parts that were chosen."""

    def __init__(
        self, parts: Sequence[str], rivals: Sequence[str], plan: Plan, progress: Progress
    ) -> None:
        self._parts = parts
        self._rivals = rivals
        self._plan = plan
        self._progress = progress
        self._found = Found()

    async def run(self) -> Found:
        """Measure all parts, never two at a time."""
        figures, plan = self._found.figures, self._plan
        if "steps" in self._parts:
            figures += await steps.measure(plan, self._tick("steps", steps.ticks(plan)))
        if "batching" in self._parts:
            figures += await batching.measure(plan, self._tick("batching", batching.ticks(plan)))
        if "caching" in self._parts:
            figures += await caching.measure(plan, self._tick("caching", caching.ticks(plan)))
        if _SHARE_A_SERVER & set(self._parts):
            await self._served()
        for world_size in plan.world_sizes:
            await self._of_world_size(world_size)
        if "start" in self._parts:
            figures += await start.measure(plan, self._tick("start", start.ticks(plan)))
        if "growth" in self._parts:
            figures += await growth.measure(plan, self._tick("growth", growth.ticks(plan)))
        if "peers" in self._parts:
            tick = self._tick("peers", peers.ticks(plan, self._rivals))
            compared = await peers.measure(plan, self._rivals, tick)
            figures += compared.figures
            self._found.tables += compared.tables
        return self._found

    async def _served(self) -> None:
        """Run what needs a server of one rank, and the direct pipeline where it is compared."""
        figures, plan = self._found.figures, self._plan
        async with contextlib.AsyncExitStack() as stack:
            client, pipeline = await self._start(stack)
            if "fixed" in self._parts:
                figures += await fixed.measure(client, plan, self._tick("fixed", plan.fixed))
            if pipeline is not None:
                tick = self._tick("ratio", 2 * plan.ratio_pairs)
                figures += await ratio.measure(client, pipeline, plan, tick)
            if "previews" in self._parts:
                tick = self._tick("previews", plan.preview_pairs)
                figures += await previews.measure(client, plan, tick)
            if "latency" in self._parts:
                await self._latency(client, 1)

    async def _of_world_size(self, world_size: int) -> None:
        figures, plan = self._found.figures, self._plan
        if "latency" in self._parts and world_size > 1:
            async with self._server(world_size) as client:
                await self._latency(client, world_size)
        for name, part in (("changes", changes), ("overlap", overlap)):
            if name in self._parts:
                tick = self._tick(f"{name}, world size {world_size}", part.ticks(plan))
                figures += await part.measure(plan, world_size, tick)

    async def _start(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[Client, DirectPipeline | None]:
        """Start both at the same time: loading is not what is measured."""
        server = stack.enter_async_context(self._server(1))
        if "ratio" not in self._parts:
            return await server, None
        return await asyncio.gather(server, stack.enter_async_context(direct_pipeline()))

    @contextlib.asynccontextmanager
    async def _server(self, world_size: int) -> AsyncIterator[Client]:
        task = self._progress.add_task(f"starting a server, world size {world_size}", total=None)
        async with serving(world_size) as server:
            self._progress.remove_task(task)
            async with Client(server.address) as client:
                yield client

    async def _latency(self, client: Client, world_size: int) -> None:
        tick = self._tick(f"latency, world size {world_size}", latency.ticks(self._plan))
        self._found.figures += await latency.measure(client, self._plan, world_size, tick)

    def _tick(self, name: str, total: int) -> Tick:
        task = self._progress.add_task(name, total=total)
        return lambda: self._progress.advance(task)
