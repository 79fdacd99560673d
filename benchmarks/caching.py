"""What the reference cache saves, and how near that is to the most that it could."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from benchmarks.figures import Figure, Subject
from benchmarks.plan import SIDE, Plan, Tick
from benchmarks.processes import on_cores, serving, threads_of
from benchmarks.requests import Served, generation, serve
from ditcast_client import Client
from ditcast_runtime.config import STARTER_MODEL

_STEPS, _LEAST_COMPUTED = 50, 18
"""Of the reference measurement: every third step, and some of the first 8, are always computed."""

_PART = 0.9
"""Of the ceiling."""

_THREADS = sorted({1, threads_of(1)})
"""Of a rank. With all of them, small operations wait for each other, of which a cached step has as
many outside its blocks as any other."""

SIDES = (SIDE, 2 * SIDE)
"""What a step does outside its blocks weighs less in larger pictures."""


@dataclass(frozen=True, slots=True)
class _Pair:
    plain: Served
    cached: Served

    @property
    def denoising(self) -> float:
        """Give how many times as long denoising takes without the cache."""
        return _denoise_seconds(self.plain) / _denoise_seconds(self.cached)

    @property
    def cached_steps(self) -> float:
        """Give how many steps were cached, of which each makes two passes."""
        report = self.cached.result.cache
        return (len(report.cached_steps) + len(report.cfg_cached_steps)) / 2


async def measure(plan: Plan, tick: Tick) -> list[Figure]:
    """Run pairs of each size in alternating order, each with a seed of its own."""
    figures: list[Figure] = []
    for threads in _THREADS:
        async with _server(threads) as client:
            for side in SIDES:
                pairs = await _pairs(client, plan, tick, side)
                figures += _figures(pairs, side, threads)
    return figures


@contextlib.asynccontextmanager
async def _server(threads: int) -> AsyncIterator[Client]:
    """Serve with so many threads in the rank."""
    # A rank has all cores: to have one, it shares two with the idle rank of another group.
    alone = threads == threads_of(1)
    with contextlib.nullcontext() if alone else on_cores(2 * threads):
        groups = "1" if alone else "2"
        async with serving(1, "--groups", groups) as server, Client(server.address) as client:
            yield client


async def _pairs(client: Client, plan: Plan, tick: Tick, side: int) -> list[_Pair]:
    pairs = []
    for number in range(plan.caching_pairs + 1):
        plain, cached = (
            generation(client, steps=_STEPS, seed=number, cached=each, side=side)
            for each in (False, True)
        )
        if number % 2:
            pair = _Pair(cached=await serve(cached), plain=await serve(plain))
        else:
            pair = _Pair(await serve(plain), await serve(cached))
        # The first one warms the cache's way up.
        if number:
            pairs.append(pair)
            tick()
    return pairs


def ticks(plan: Plan) -> int:
    """Say how often `measure` calls its tick."""
    return len(_THREADS) * len(SIDES) * plan.caching_pairs


def ceiling(steps: int, computed: float, blocks: int) -> float:
    """Give the most that a cache can save which still computes the first of a step's blocks."""
    return steps / (computed + (steps - computed) / blocks)


def _figures(pairs: list[_Pair], side: int, threads: int) -> list[Figure]:
    words = f"{side}x{side}, {threads} thread{'s' if threads > 1 else ''}"
    at = f"{side}_{threads}"
    subject = Subject("caching", 1, threads)
    blocks = json.loads((STARTER_MODEL / "transformer" / "config.json").read_text())["num_layers"]
    best = ceiling(_STEPS, _LEAST_COMPUTED, blocks)
    return [
        subject.figure(
            f"caching_denoising_{at}",
            f"Denoising without to with the reference cache, of at most {best:.2f}, {words}",
            "x",
            [pair.denoising for pair in pairs],
            target=_PART * best,
            at_least=True,
            note=f"{_STEPS} steps, {_LEAST_COMPUTED} computed; of the others 1 block of {blocks}",
        ),
        subject.figure(
            f"caching_of_ceiling_{at}",
            f"Of the most for as many cached steps as there were, {words}",
            "",
            [
                pair.denoising / ceiling(_STEPS, _STEPS - pair.cached_steps, blocks)
                for pair in pairs
            ],
            note="the rest is what a step does outside its blocks, and the cache's own work",
        ),
        subject.figure(
            f"caching_cached_steps_{at}",
            f"Steps that were cached, of {_STEPS}, {words}",
            "steps",
            [pair.cached_steps for pair in pairs],
            note=f"at best {_STEPS - _LEAST_COMPUTED}; fewer where the threshold says so",
        ),
        subject.figure(
            f"caching_whole_{at}",
            f"Whole generation without to with it, {words}",
            "x",
            [pair.plain.seconds / pair.cached.seconds for pair in pairs],
            note="at the client: with the prompt's encoding, decoding and the PNG",
        ),
        subject.figure(
            f"caching_outside_{at}",
            f"Of the whole one, outside denoising, without the cache, {words}",
            "ms",
            [(pair.plain.seconds - _denoise_seconds(pair.plain)) * 1000 for pair in pairs],
            note="what no cache of steps can save",
        ),
    ]


def _denoise_seconds(served: Served) -> float:
    return served.result.timings.denoise.ToTimedelta().total_seconds()
