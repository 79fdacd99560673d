"""How the cost of generations grows, and the service's own part of it, along six axes.

The service's own part is the CPU time of its process: what it does while ranks compute costs no
wall time of a generation, but would in the end be what it cannot do more of.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.figures import Figure, Point, Subject
from benchmarks.plan import STEP_SIDE, Plan, Tick
from benchmarks.processes import Server, serving, threads_of
from benchmarks.requests import generation
from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_client import Client

_FEW_STEPS = 2
"""The fewest that the model's scheduler makes."""
_WATCHED_STEPS = 16
_SHARED_SIDE = 96
"""A side that one, two and three ranks can share."""


@dataclass(frozen=True, slots=True)
class _Cost:
    """What one measurement took, in seconds."""

    wall: float
    service: float
    """CPU time of the service's process, encoding included."""


class _Bench:
    """Servers of all world sizes, idle but for the one that is measured."""

    def __init__(self, servers: dict[int, Server]) -> None:
        self._servers = servers
        self.address = servers[1].address

    @contextlib.asynccontextmanager
    async def clients(self, count: int) -> AsyncIterator[list[Client]]:
        """Give clients with connections of their own, each of which was used once."""
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(self.address)) for _ in range(count)]
            await asyncio.gather(*(client.configuration() for client in clients))
            yield clients

    async def cost(self, work: Callable[[], Awaitable[object]], world_size: int = 1) -> _Cost:
        """Do it, and say what it took."""
        clock = _cpu_clock(self._servers[world_size].process_id)
        wall, cpu = time.perf_counter(), time.clock_gettime(clock)
        await work()
        return _Cost(time.perf_counter() - wall, time.clock_gettime(clock) - cpu)

    async def shared(self, world_size: int) -> _Cost:
        """Make one picture on a number of ranks."""
        async with Client(self._servers[world_size].address) as client:
            await client.configuration()
            made = generation(client, steps=4, side=_SHARED_SIDE)
            return await self.cost(made.result, world_size)


def _cpu_clock(process_id: int) -> int:
    """Give the clock of a process's CPU time, as clock_getcpuclockid(3) makes its number."""
    return (~process_id << 3) | 2


async def _resolution(bench: _Bench, pixels: int) -> _Cost:
    async with bench.clients(1) as (client,):
        side = round(pixels**0.5)
        return await bench.cost(generation(client, steps=_FEW_STEPS, side=side).result)


async def _steps(bench: _Bench, steps: int) -> _Cost:
    async with bench.clients(1) as (client,):
        return await bench.cost(generation(client, steps=steps, side=STEP_SIDE).result)


async def _world_size(bench: _Bench, world_size: int) -> _Cost:
    return await bench.shared(world_size)


async def _clients(bench: _Bench, count: int) -> _Cost:
    async with bench.clients(count) as clients:
        return await bench.cost(lambda: _together(clients))


async def _queue(bench: _Bench, count: int) -> _Cost:
    async with bench.clients(1) as (client,):
        return await bench.cost(lambda: _together([client] * count))


async def _together(clients: Sequence[Client]) -> None:
    """Have each make a picture, all sent at once."""
    made = [
        generation(client, steps=_FEW_STEPS, side=STEP_SIDE, seed=seed)
        for seed, client in enumerate(clients)
    ]
    await asyncio.gather(*(one.result() for one in made))


async def _watchers(bench: _Bench, count: int) -> _Cost:
    async with bench.clients(1 + count) as (client, *watching):
        made = generation(client, steps=_WATCHED_STEPS, side=STEP_SIDE)

        async def watch() -> None:
            events = aiter(made)
            await anext(events)  # From then on the server knows its id.
            followed = (client.watch(made.request_id) for client in watching)
            await asyncio.gather(_read(events), *(_read(aiter(events)) for events in followed))

        return await bench.cost(watch)


async def _read(events: AsyncIterator[GenerationEvent]) -> None:
    async for _ in events:
        pass


@dataclass(frozen=True, slots=True)
class _Axis:
    """What grows, and where it is measured."""

    name: str
    words: str
    places: tuple[int, ...]
    measure: Callable[[_Bench, int], Awaitable[_Cost]]


_AXES = (
    _Axis("resolution", "pixels of a picture", (64**2, 128**2, 192**2, 256**2), _resolution),
    _Axis("steps", "steps", (4, 16, 64, 128), _steps),
    _Axis("world size", "ranks", (1, 2, 3), _world_size),
    _Axis("clients", "clients, one picture each", (1, 4, 16, 64), _clients),
    _Axis("queue", "pictures queued at once", (1, 4, 16, 64), _queue),
    _Axis("watchers", "watchers of a picture", (1, 4, 16, 64), _watchers),
)


def _places(axis: _Axis, plan: Plan) -> tuple[int, ...]:
    """Give the places that are measured: two at least, as it is a curve."""
    return axis.places[: max(2, len(axis.places) - plan.growth_reach)]


def ticks(plan: Plan) -> int:
    """Say how often `measure` calls its tick."""
    return (plan.growth_rounds + 1) * sum(len(_places(axis, plan)) for axis in _AXES)


async def measure(plan: Plan, tick: Tick) -> list[Figure]:
    """Go through all places of all axes again and again; the first time does not count."""
    costs: dict[tuple[str, int], list[_Cost]] = {}
    async with contextlib.AsyncExitStack() as stack:
        sizes = _places(_AXES[2], plan)
        started = await asyncio.gather(
            *(stack.enter_async_context(serving(size)) for size in sizes)
        )
        bench = _Bench(dict(zip(sizes, started, strict=True)))
        for number in range(plan.growth_rounds + 1):
            for axis in _AXES:
                for place in _places(axis, plan):
                    cost = await axis.measure(bench, place)
                    if number:
                        costs.setdefault((axis.name, place), []).append(cost)
                    tick()
    figures: list[Figure] = []
    for axis in _AXES:
        figures += _figures(axis, {place: costs[axis.name, place] for place in _places(axis, plan)})
    return figures


def _figures(axis: _Axis, costs: dict[int, list[_Cost]]) -> list[Figure]:
    key = axis.name.replace(" ", "_")
    figures = []
    for place, measured in costs.items():
        ranks = place if axis.name == "world size" else 1
        subject = Subject("growth", ranks, threads_of(ranks))
        for curve, words, values in (
            ("all", "all of it", [cost.wall for cost in measured]),
            ("service", "the service's CPU time", [cost.service for cost in measured]),
        ):
            figures.append(
                subject.figure(
                    f"growth_{key}_{curve}_{place}",
                    f"{place} {axis.words}: {words}",
                    "ms",
                    [seconds * 1000 for seconds in values],
                    point=Point(plot=f"growth {axis.name}", curve=words, axis=axis.words, at=place),
                )
            )
    return [*figures, *_exponents(axis, costs)]


def _exponents(axis: _Axis, costs: dict[int, list[_Cost]]) -> list[Figure]:
    """Fit the power with which the service's part grows: to each round, all over and at the end."""
    subject = Subject("growth", 1, threads_of(1))
    key = axis.name.replace(" ", "_")
    places = list(costs)
    return [
        subject.figure(
            f"growth_{key}_{name}",
            f"Power of the service's CPU time in {axis.words}, {words}",
            "",
            [
                _power(chosen, [costs[place][number].service for place in chosen])
                for number in range(len(costs[places[0]]))
            ],
            target=1.0,
            note="least squares on logarithms, round by round; 1 is linear",
        )
        for name, words, chosen in (
            ("power", "all over", places),
            ("power_at_end", "between the last two", places[-2:]),
        )
    ]


def _power(places: Sequence[int], seconds: Sequence[float]) -> float:
    slope, _ = np.polyfit(np.log(places), np.log(seconds), 1)
    return float(slope)
