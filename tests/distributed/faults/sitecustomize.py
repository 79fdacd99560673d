"""Faults for the ranks of a server under test: reachable only by who sets this server's PYTHONPATH.

Python imports this file by itself at the start of each process whose path has this folder; it does
something where a rank's code is imported. A request id asks for the fault, so that one server
serves many tests: `fault-PLACE-KIND-RANKS-STEP-TIMES-...`, for instance
`fault-inside-raise-1-2-1-x`: rank 1 raises in the pipeline's own collective of step 2, the first
time that this generation runs.

PLACE: prepare (before the first vote), before (the vote of a step), inside (the pipeline's
collective in a step), after (the vote of a step), decode, made (half a second after all was made,
before the last vote). KIND: raise, memory, kill, stop, hang.
RANKS: a rank, or `all`. TIMES: in how many runs of the generation.

Of cache settings, those with a `residual_diff_threshold` of REFUSED_BY_RANK_ONE are what rank 1
alone cannot hold.

Rank 0 also adds a line to the file STEP_TIMES at the end of each step: the request id, the step,
and the time of day.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REFUSED_BY_RANK_ONE = 0.987654
_FOR_EVER_SECONDS = 3600
_WITHOUT_STEP = {"prepare", "decode", "made"}


class Fault:
    """What one request id asks this rank for; `current` is that of the generation that runs."""

    current: Fault | None = None

    def __init__(self, execution: Any, request_id: str, rank: int) -> None:
        _, self.place, self.kind, ranks, step, times, *_ = request_id.split("-")
        runs = Path(os.environ["FAULT_RUNS"]) / f"{request_id}-{rank}"
        with runs.open("a") as file:
            file.write("x")
        self.active = ranks in {"all", str(rank)} and runs.stat().st_size <= int(times)
        self.step = int(step)
        self.execution = execution

    @classmethod
    def strike(cls, place: str) -> None:
        """Do what was asked for, if this is the place and the step."""
        fault = cls.current
        if fault is None or not fault.active or fault.place != place:
            return
        if place in _WITHOUT_STEP or fault.execution.steps + 1 == fault.step:
            fault.do()

    def do(self) -> None:
        """Die, stop or fail, and leave a note of it."""
        (Path(os.environ["FAULT_RUNS"]) / f"struck-{self.execution.command.request_id}").touch()
        match self.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":
                time.sleep(_FOR_EVER_SECONDS)
            case "memory":
                raise importlib.import_module("torch").OutOfMemoryError("injected")
            case _:
                raise RuntimeError("injected")


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put `around(original, *arguments)` in a method's place."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        return around(original, *arguments, **options)

    setattr(owner, name, wrapped)


def _before(place: str) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        Fault.strike(place)
        return original(*arguments, **options)

    return around


def _run(original: Callable[..., Any], execution: Any) -> None:
    request_id = execution.command.request_id
    asked = request_id.startswith("fault-")
    Fault.current = Fault(execution, request_id, execution._control.rank) if asked else None
    try:
        original(execution)
    finally:
        Fault.current = None


def _vote(original: Callable[..., Any], execution: Any) -> None:
    if execution.steps == execution.command.parameters.num_inference_steps:
        if Fault.current is not None and Fault.current.place == "made":
            time.sleep(0.5)
        Fault.strike("made")
    original(execution)
    if execution.prepared and execution._denoise_seconds:
        Fault.strike("after")


def _note(original: Callable[..., Any], execution: Any, step: int, *rest: Any) -> None:
    """Note when a step ended: before the vote, and before any report of it."""
    if execution._control.rank == 0:
        with Path(os.environ["STEP_TIMES"]).open("a") as file:
            file.write(f"{execution.command.request_id} {step} {time.time()}\n")
    original(execution, step, *rest)


def _pipeline(original: Callable[..., Any], pipeline: Any, *arguments: Any) -> Any:
    """Strike within an attention too, where the other ranks are in a collective, and in the VAE."""
    pipe = pipeline.pipe
    if not hasattr(pipe, "_faulty"):
        pipe._faulty = True
        block = pipe.transformer.transformer_blocks[1]
        block.register_forward_pre_hook(lambda *_: Fault.strike("inside"))
        _wrap(pipe.vae, "decode", _before("decode"))
    return original(pipeline, *arguments)


def _switch(
    original: Callable[..., Any], accelerator: Any, settings: Any, steps: int, **options: Any
) -> None:
    original(accelerator, settings, steps, **options)
    threshold = getattr(settings.method, "residual_diff_threshold", None)
    distributed: Any = importlib.import_module("torch.distributed")
    if threshold == REFUSED_BY_RANK_ONE and distributed.get_rank() == 1:
        raise RuntimeError("injected")


def _install() -> None:
    acceleration: Any = importlib.import_module("ditcast_runtime.acceleration")
    execution: Any = importlib.import_module("ditcast_runtime.execution")
    _wrap(execution.Execution, "run", _run)
    _wrap(execution.Execution, "_vote", _vote)
    _wrap(execution.Execution, "step_ended", _before("before"))
    _wrap(execution.Pipeline, "prepare", _before("prepare"))
    _wrap(execution.Pipeline, "run", _pipeline)
    _wrap(acceleration.Accelerator, "switch", _switch)
    _wrap(execution.Execution, "step_ended", _note)


class _AtImport:
    """Installs the faults when the rank's own code is imported, and not before it begins itself."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Find nothing: the import goes on as ever."""
        if name == "ditcast_runtime.rank":
            sys.meta_path.remove(self)
            _install()


sys.meta_path.insert(0, _AtImport())
