"""The processes that are measured: a server, and a pipeline that is called directly.

All of them get the environment that the ranks get from the service, so that both sides of a
comparison run with the same threads, and none spins while it is idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import cores
from benchmarks.plan import REFERENCE_CACHE

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
    return own | {
        "CACHE_DIT_LOG_LEVEL": "error",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GLOO_SOCKET_IFNAME": "lo",
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextlib.asynccontextmanager
async def serving(world_size: int) -> AsyncIterator[str]:
    """Run `ditcast serve` with the reference cache and yield its address once it serves."""
    with tempfile.TemporaryDirectory(prefix="ditcast-bench-") as folder:
        address = f"unix:{folder}/socket"
        arguments = ["-m", "ditcast_service.serve", "--listen", address]
        arguments += ["--world-size", str(world_size), "--log-level", "warning"]
        arguments += ["--cache-dit-config", str(REFERENCE_CACHE)]
        async with _running(arguments, threads_of(world_size), Path(folder)) as lines:
            await lines.read()
            yield address


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectRequest:
    """One call of the pipeline in the process that has nothing else."""

    prompt: str
    negative_prompt: str
    true_cfg_scale: float
    side: int
    steps: int
    seed: int
    cached: bool
    """With the reference cache, or with none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectAnswer:
    """How that call went."""

    seconds: float
    sha256: str
    """Of the picture's RGB bytes."""
    threads: int


class DirectPipeline:
    """The pipeline in a process of its own, called one request after the other."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    async def call(self, request: DirectRequest) -> DirectAnswer:
        """Have it called once; times are its own, without the way here."""
        fields = {name: getattr(request, name) for name in DirectRequest.__slots__}
        self._lines.write(json.dumps(fields))
        return DirectAnswer(**json.loads(await self._lines.read()))


@contextlib.asynccontextmanager
async def direct_pipeline() -> AsyncIterator[DirectPipeline]:
    """Run `benchmarks.direct` with as many threads as the only rank of a server has."""
    with tempfile.TemporaryDirectory(prefix="ditcast-bench-") as folder:
        arguments = ["-m", "benchmarks.direct"]
        async with _running(arguments, threads_of(1), Path(folder)) as lines:
            await lines.read()
            yield DirectPipeline(lines)


class _Lines:
    """A process as what it reads and writes, line by line."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    def write(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line.encode() + b"\n")

    async def read(self) -> str:
        """Give the next line; ProcessFailed if there is none any more."""
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        async with asyncio.timeout(_START_SECONDS):
            line = await self._process.stdout.readline()
        if not line:
            raise ProcessFailed(self._log.read_text("utf-8", "replace")[-2000:])
        return line.decode()


@contextlib.asynccontextmanager
async def _running(arguments: list[str], threads: int, folder: Path) -> AsyncIterator[_Lines]:
    """Run a Python process, and leave nothing of it behind."""
    path = folder / "log"
    with path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=environment(threads),
            cwd=Path(__file__).parent.parent,
            # As the ranks have: Linux shares busy cores among Unix sessions (autogroup).
            start_new_session=True,
        )
    try:
        yield _Lines(process, path)
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
