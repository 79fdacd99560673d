"""What the service adds on the ranks' own path: its work at the boundary of each step."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from benchmarks.figures import Figure, Subject
from benchmarks.plan import REFERENCE_CACHE, Plan, Tick
from benchmarks.processes import ProcessFailed, environment, threads_of
from ditcast_runtime.channel import ServiceChannel
from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.launches import Launch, SharedFile
from ditcast_runtime.messages import (
    Report,
)
from ditcast_runtime.settings import (
    Acceleration,
    Disabled,
    LoadingSettings,
    load_acceleration,
    resolve_parallelism,
)

_TARGETS = {1: 0.3, 2: 1.0}
"""Milliseconds a step by world size."""

_LINE_SECONDS = 300.0
_LINE_BYTES = 16 * 2**20


class _Rank:
    """A process of `benchmarks.step_rank`, with this side of its channel."""

    def __init__(self, process: asyncio.subprocess.Process, channel: ServiceChannel) -> None:
        self._process = process
        self._channel = channel

    async def readings(self, tick: Tick) -> dict[str, list[list[float]] | list[float]]:
        """Wait for the last line; ProcessFailed if the process ends before it."""
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        while True:
            async with asyncio.timeout(_LINE_SECONDS):
                line = await self._process.stdout.readline()
            if not line:
                raise ProcessFailed("a rank of the step benchmark ended early; see above")
            if line.startswith(b"{"):
                found: dict[str, list[list[float]] | list[float]] = json.loads(line)
                return found
            if line == b"pair\n":
                tick()

    async def end(self) -> None:
        """Leave nothing of it behind."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


async def measure(plan: Plan, tick: Tick) -> list[Figure]:
    """Measure a step on each world size."""
    figures: list[Figure] = []
    for world_size in plan.world_sizes:
        figures += await _measure(plan, world_size, tick)
    return figures


def ticks(plan: Plan) -> int:
    """Say how often `measure` calls its tick."""
    return (plan.step_pairs + 1) * len(plan.world_sizes)


async def _measure(plan: Plan, world_size: int, tick: Tick) -> list[Figure]:
    async with _ranks(plan, world_size) as ranks:
        waiting = [rank.readings(tick if not number else _silent) for number, rank in ranks]
        readings = await asyncio.gather(*waiting)
    subject = Subject("steps", world_size, threads_of(world_size))
    target = _TARGETS.get(world_size)
    # Rank 0 does all that the others do, and reports.
    first = readings[0]
    return [
        subject.figure(
            f"step_boundary_cpu_{world_size}",
            "Added a step, CPU: the step boundary",
            "ms",
            _milliseconds(first["boundary_cpu"]),
            target=target,
            note="rank 0, in real generations: vote, decisions, report",
        ),
        subject.figure(
            f"step_boundary_wall_{world_size}",
            "Added a step, wall: the step boundary",
            "ms",
            _milliseconds(first["boundary_wall"]),
            note="the same, with the wait for the slowest rank",
        ),
        subject.figure(
            f"step_paired_cpu_{world_size}",
            "Added a step, CPU: executed less direct",
            "ms",
            _paired(first),
            target=target,
            note="rank 0, whole steps: with the pipeline's own noise, see the interval",
        ),
        subject.figure(
            f"step_direct_cpu_{world_size}",
            "A step of the pipeline called directly, CPU",
            "ms",
            [statistics.fmean(_listed(run)) * 1000 for run in first["direct"]],
            note="rank 0; mean of a generation's steps, computed and cached",
        ),
    ]


def _silent() -> None:
    """Tick for nobody."""


def _listed(run: list[float] | float) -> list[float]:
    return run if isinstance(run, list) else [run]


def _milliseconds(seconds: list[list[float]] | list[float]) -> list[float]:
    return [value * 1000 for item in seconds for value in _listed(item)]


def _paired(readings: dict[str, list[list[float]] | list[float]]) -> list[float]:
    """Give the difference of each step to the same step of the direct call it is paired with."""
    executed = _milliseconds(readings["executed"])
    direct = _milliseconds(readings["direct"])
    return [mine - theirs for mine, theirs in zip(executed, direct, strict=True)]


@contextlib.asynccontextmanager
async def _ranks(plan: Plan, world_size: int) -> AsyncIterator[list[tuple[int, _Rank]]]:
    ranks: list[tuple[int, _Rank]] = []
    with tempfile.TemporaryDirectory(prefix="ditcast-bench-") as folder:
        try:
            for number in range(world_size):
                launch = _launch(number, world_size, Path(folder))
                ranks.append((number, await _spawn(launch, plan)))
            yield ranks
        finally:
            for _, rank in ranks:
                await rank.end()


async def _spawn(launch: Launch, plan: Plan) -> _Rank:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.step_rank"),
            *("--channel", str(theirs.fileno())),
            *("--pairs", str(plan.step_pairs)),
            *("--steps", str(plan.steps)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=environment(launch.threads),
            cwd=Path(__file__).parent.parent,
            limit=_LINE_BYTES,
        )
    channel = ServiceChannel(ours, _drop, lambda _: None)
    channel.send(launch)
    return _Rank(process, channel)


def _drop(_report: Report, descriptor: int | None) -> None:
    """Read a report as the service does, and keep nothing of it."""
    if descriptor is not None:
        os.close(descriptor)


def _launch(rank: int, world_size: int, folder: Path) -> Launch:
    cache = load_acceleration(REFERENCE_CACHE).cache
    assert not isinstance(cache.method, Disabled)  # noqa: S101 - the file beside this one
    # The service settles this for each request from whether it makes two passes; these do.
    method = msgspec.structs.replace(cache.method, enable_separate_cfg=True)
    parallelism = resolve_parallelism(None, world_size) if world_size > 1 else None
    return Launch(
        epoch=1,
        rank=rank,
        local_rank=rank,
        world_size=world_size,
        store=SharedFile(path=str(folder / "rendezvous")),
        stacks=str(folder / f"stacks-{rank}"),
        model=str(STARTER_MODEL),
        model_revision="",
        variant="",
        device="cpu",
        loading=LoadingSettings(),
        warm_up=(),
        acceleration=Acceleration(
            cache=dataclasses.replace(cache, method=method), parallelism=parallelism
        ),
        threads=threads_of(world_size),
        prompt_cache_bytes=0,
        json_logs=True,
        log_level="warning",
    )
