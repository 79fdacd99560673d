"""The processes that are measured: a server, and a pipeline that is called directly.

All of them get the environment that the ranks get from the service, so that both sides of a
comparison run with the same threads, which wait in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.machine import cores
from benchmarks.plan import REFERENCE_CACHE, Plan
from ditcast_runtime.environment import rank_environment

_START_SECONDS = 600.0
_STOP_SECONDS = 30.0


class ProcessFailed(Exception):
    """A process that is measured ended early; its log says why."""


def threads_of(world_size: int) -> int:
    """Give the threads of each rank: the cores, shared, as the service does it."""
    return max(1, cores() // world_size)


def environment(threads: int) -> dict[str, str]:
    """Give the environment of the ranks, without the user's own settings of ditcast."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DITCAST_")}
    return rank_environment(own, threads, "lo")


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Have what is started meanwhile run on no more than so many cores, which share out threads."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class Server:
    """A running `ditcast serve`."""

    def __init__(self, address: str, process: Process) -> None:
        self.address = address
        self.process_id = process.id
        self.log = process.log

    def ranks(self) -> list[psutil.Process]:
        """Give the processes of its ranks."""
        children = psutil.Process(self.process_id).children()
        return [child for child in children if "ditcast_runtime.rank_process" in child.cmdline()]


@contextlib.asynccontextmanager
async def serving(
    world_size: int,
    *options: str,
    cache: Path = REFERENCE_CACHE,
    extra: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """Run `ditcast serve` and yield it once it serves; `extra` are variables of its environment."""
    with tempfile.TemporaryDirectory(prefix="ditcast-bench-") as folder:
        address = f"unix:{folder}/socket"
        command = [sys.executable, "-m", "ditcast_service.serve", "--listen", address]
        command += ["--world-size", str(world_size)]
        command += ["--cache-dit-config", str(cache)]
        # What stands last counts.
        command += ["--log-level", "warning", *options]
        async with running(command, threads_of(world_size), Path(folder), extra) as process:
            await process.read()
            yield Server(address, process)


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectRequest:
    """One call of the pipeline in the process that has nothing else."""

    prompts: tuple[str, ...]
    """Of pictures that are made together."""
    seeds: tuple[int, ...]
    negative_prompt: str
    true_cfg_scale: float
    side: int
    steps: int
    cache: str
    """Path of a file in cache-dit's format; empty for no cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectAnswer:
    """How that call went."""

    seconds: float
    sha256: tuple[str, ...]
    """Of each picture's RGB bytes."""
    threads: int


class DirectPipeline:
    """The pipeline in a process of its own, called one request after the other."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    async def call(self, request: DirectRequest) -> DirectAnswer:
        """Have it called once; times are its own, without the way here."""
        fields = {name: getattr(request, name) for name in DirectRequest.__slots__}
        async with self._turn:
            self._process.write(json.dumps(fields))
            answer = json.loads(await self._process.read())
        return DirectAnswer(**answer | {"sha256": tuple(answer["sha256"])})


@contextlib.asynccontextmanager
async def direct_pipeline() -> AsyncIterator[DirectPipeline]:
    """Run `benchmarks.direct` with as many threads as the only rank of a server has."""
    with tempfile.TemporaryDirectory(prefix="ditcast-bench-") as folder:
        command = [sys.executable, "-m", "benchmarks.direct"]
        async with running(command, threads_of(1), Path(folder)) as process:
            await process.read()
            yield DirectPipeline(process)


@contextlib.asynccontextmanager
async def direct_batches(plan: Plan, threads: int) -> AsyncIterator[AsyncIterator[str]]:
    """Run `benchmarks.batched_calls` and yield its lines, as it writes them."""
    command = [sys.executable, "-m", "benchmarks.batched_calls", "--pairs", str(plan.batch_pairs)]
    command += ["--steps", *map(str, plan.batch_steps)]
    command += ["--sizes", *map(str, plan.batch_sizes)]
    count = 2 * len(plan.batch_steps) * len(plan.batch_sizes) * plan.batch_pairs
    with tempfile.TemporaryDirectory(prefix="ditcast-bench-") as folder:
        async with running(command, threads, Path(folder)) as process:
            yield process.some(count)


class Process:
    """A process as what it reads and writes, line by line."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self.log = log
        self.id = process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.returncode is not None

    def write(self, line: str) -> None:
        """Give it a line to read."""
        if self._process.stdin is not None:
            self._process.stdin.write(line.encode() + b"\n")

    async def some(self, count: int) -> AsyncIterator[str]:
        """Give the next so many lines."""
        for _ in range(count):
            yield await self.read()

    async def read(self) -> str:
        """Give the next line; ProcessFailed if there is none any more."""
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        async with asyncio.timeout(_START_SECONDS):
            line = await self._process.stdout.readline()
        if not line:
            raise self.failed()
        return line.decode()

    def failed(self) -> ProcessFailed:
        """Say with its last words that it failed."""
        return ProcessFailed(self.log.read_text("utf-8", "replace")[-2000:])


@contextlib.asynccontextmanager
async def running(
    command: list[str], threads: int, folder: Path, extra: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """Run a command with its log in a folder, and leave nothing of it behind."""
    path = folder / "log"
    with path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=environment(threads) | dict(extra or {}),
            cwd=Path(__file__).parent.parent,
            # As the ranks have: Linux shares busy cores among Unix sessions (autogroup).
            start_new_session=True,
        )
    try:
        yield Process(process, path)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
