"""Some clients at once, each of which asks for a picture as soon as it has the one before."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass, field

from benchmarks.peers.sides import Asking, Side, request
from benchmarks.plan import Plan

_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
_SHAPES = ("circle", "square", "triangle")
_PROMPTS = tuple(
    f"a large {one} {first} left of a small {other} {second} on a {ground} background"
    for one, other, ground in itertools.permutations(_COLOURS, 3)
    for first, second in itertools.product(_SHAPES, repeat=2)
)


def prompt(seed: int) -> str:
    """Give a prompt that no other seed of a block has, so that nobody gains by keeping it."""
    return _PROMPTS[seed % len(_PROMPTS)]


@dataclass(frozen=True, slots=True)
class Load:
    """What a number of clients got of one side."""

    seconds: float
    """From the first request to the last picture."""
    latencies: list[float]
    """Of each picture, in seconds."""
    pictures: dict[int, bytes]
    """By seed."""

    @property
    def rate(self) -> float:
        """Give the pictures a second."""
        return len(self.latencies) / self.seconds


@dataclass(slots=True)
class Block:
    """All sides at all numbers of clients, once."""

    batch_rate: float
    """Pictures a second of the direct call with a batch."""
    loads: dict[tuple[str, int], Load] = field(default_factory=dict)
    """By the side's name and the number of clients."""


def pictures_of(clients: int, plan: Plan) -> int:
    """Say how many pictures so many clients ask for: each at least one, few clients some more."""
    return max(clients, min(2 * clients, 16), plan.peer_least)


async def load(side: Side, clients: int, plan: Plan, block: int) -> Load:
    """Have clients with connections of their own share a number of requests."""
    first = 1000 * (block + 1)
    seeds = iter(range(first, first + pictures_of(clients, plan)))
    latencies: list[float] = []
    pictures: dict[int, bytes] = {}

    async def work(client: Asking) -> None:
        for seed in seeds:
            began = time.perf_counter()
            pictures[seed] = await client.ask(request(prompt(seed), seed, plan.peer_steps))
            latencies.append(time.perf_counter() - began)

    async with contextlib.AsyncExitStack() as stack:
        connected = [await stack.enter_async_context(side.connect()) for _ in range(clients)]
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for client in connected:
                group.create_task(work(client))
        return Load(time.perf_counter() - began, latencies, pictures)
