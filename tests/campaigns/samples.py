"""Samples of every process of a server while it works: memory, descriptors, threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from tests.distributed.servers import Server

EVERY_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One process at one time."""

    process: str
    generation: int
    """Generations that had ended."""
    resident_bytes: int
    descriptors: int
    threads: int


async def collect(server: Server, ended: Callable[[], int], samples: list[Sample]) -> None:
    """Add samples until cancelled; a process that has gone is an error."""
    watched = {"service": psutil.Process(server.process.pid)}
    watched |= {f"rank {number}": rank for number, rank in enumerate(server.ranks())}
    while True:
        samples += [_sample(name, process, ended()) for name, process in watched.items()]
        await asyncio.sleep(EVERY_SECONDS)


def _sample(name: str, process: psutil.Process, generation: int) -> Sample:
    with process.oneshot():
        return Sample(
            process=name,
            generation=generation,
            resident_bytes=process.memory_info().rss,
            descriptors=process.num_fds(),
            threads=process.num_threads(),
        )
