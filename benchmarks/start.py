"""Time to SERVING, against importing the libraries and loading the pipeline alone."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.figures import Figure, Subject
from benchmarks.plan import Plan, Tick
from benchmarks.processes import running, serving, threads_of
from ditcast_runtime.config import STARTER_MODEL

_TARGET = 1.2

_LIBRARIES = f"""
import torch, cache_dit
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
DiffusionPipeline.from_pretrained({str(STARTER_MODEL)!r}, torch_dtype=torch.float32)
print("loaded", flush=True)
"""
"""What anybody has to do before a first call, in a fresh process."""

_STAGES = (
    ("listening", "until it listens, and starts its rank"),
    ("joining the group", "until the rank has imported its libraries"),
    ("warming up", "until it has loaded"),
    ("serving", "until it has warmed up, and serves"),
)
"""Events of the log, or stages in it, that end a part of the start."""


@dataclass(frozen=True, slots=True)
class _Start:
    """One start of the service."""

    seconds: float
    stages: list[float]
    """Of `_STAGES`, one after the other."""


def ticks(plan: Plan) -> int:
    """Say how often `measure` calls its tick."""
    return plan.starts


async def measure(plan: Plan, tick: Tick) -> list[Figure]:
    """Start both by turns."""
    direct, starts = [], []
    await _load()  # Into the page cache.
    for number in range(plan.starts):
        if number % 2:
            starts.append(await _serve())
        direct.append(await _load())
        if not number % 2:
            starts.append(await _serve())
        tick()
    return _figures(direct, starts)


async def _load() -> float:
    with tempfile.TemporaryDirectory(prefix="ditcast-bench-") as folder:
        began = time.perf_counter()
        command = [sys.executable, "-c", _LIBRARIES]
        async with running(command, threads_of(1), Path(folder)) as process:
            await process.read()
            return time.perf_counter() - began


async def _serve() -> _Start:
    began, clock = time.perf_counter(), time.time()
    async with serving(1, "--log-level", "info", "--log-format", "json") as server:
        seconds = time.perf_counter() - began
        return _Start(seconds, _stages(server.log.read_text("utf-8"), clock))


def _stages(log: str, began: float) -> list[float]:
    """Read off the log how long each part took; the ranks' lines are of the same clock."""
    moments: dict[str, float] = {}
    for line in log.splitlines():
        entry = json.loads(line)
        moment = datetime.fromisoformat(entry["timestamp"]).timestamp()
        moments.setdefault(entry.get("stage", entry["event"]), moment)
    ends = [began, *(moments[name] for name, _ in _STAGES)]
    return [after - before for before, after in itertools.pairwise(ends)]


def _figures(direct: Sequence[float], starts: Sequence[_Start]) -> list[Figure]:
    subject = Subject("start", 1, threads_of(1))
    return [
        subject.figure(
            "start_ratio",
            "Start to SERVING, of importing and loading alone",
            "x",
            [start.seconds / alone for start, alone in zip(starts, direct, strict=True)],
            target=_TARGET,
            note="alternated; each in a fresh process",
        ),
        subject.figure(
            "start_direct",
            "Importing and loading alone",
            "s",
            direct,
            note="torch, cache_dit, DiffusionPipeline.from_pretrained",
        ),
        subject.figure("start_serving", "Start to SERVING", "s", [one.seconds for one in starts]),
        *(
            subject.figure(
                f"start_until_{name.replace(' ', '_')}",
                f"of which {words}",
                "s",
                [start.stages[index] for start in starts],
                note="by the log",
            )
            for index, (name, words) in enumerate(_STAGES)
        ),
    ]
