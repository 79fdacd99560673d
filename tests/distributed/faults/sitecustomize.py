"""Faults for the ranks of a server under test: reachable only by who sets this server's PYTHONPATH.

Python imports this file by itself at the start of each process whose path has this folder; it does
something in rank processes alone. A request id asks for the fault, so that one server serves many
tests: `fault-PLACE-KIND-RANKS-STEP-TIMES-...`, for instance `fault-inside-raise-1-2-1-x`: rank 1
raises in the pipeline's own collective of step 2, the first time that this generation runs.

PLACE: prepare (before the first vote), before (the vote of a step), inside (the pipeline's
collective in a step), after (the vote of a step), decode. KIND: raise, memory, kill, stop.
RANKS: a rank, or `all`. TIMES: in how many runs of the generation.

Of cache settings, those with a `residual_diff_threshold` of REFUSED_BY_RANK_ONE are what rank 1
alone cannot hold.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

REFUSED_BY_RANK_ONE = 0.987654


def _install() -> None:
    import torch

    acceleration: Any = importlib.import_module("ditcast_runtime.acceleration")
    execution: Any = importlib.import_module("ditcast_runtime.execution")

    run = execution.Execution.run
    vote = execution.Execution._vote
    step_ended = execution.Execution.step_ended
    prepare = execution.Pipeline.prepare
    decisions = execution.Pipeline.run
    current: list[Any] = [None]

    class Fault:
        """What one request id asks this rank for."""

        def __init__(self, ended: Any, request_id: str, rank: int) -> None:
            _, self.place, self.kind, ranks, step, times, *_ = request_id.split("-")
            folder = Path(os.environ["FAULT_RUNS"])
            runs = folder / f"{request_id}-{rank}"
            run_number = len(runs.read_text()) + 1 if runs.exists() else 1
            with runs.open("a") as file:
                file.write("x")
            self.active = ranks in {"all", str(rank)} and run_number <= int(times)
            self.step = int(step)
            self.execution = ended

        def strike(self, place: str) -> None:
            """Do it, if this is the place and the step."""
            here = place == self.place and self.active
            if not here or (place not in {"prepare", "decode"} and self._step() != self.step):
                return
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.kind == "memory":
                raise torch.OutOfMemoryError("injected")
            raise RuntimeError("injected")

        def _step(self) -> int:
            return int(self.execution.steps) + 1

    def strike(place: str) -> None:
        if current[0] is not None:
            current[0].strike(place)

    def faulty_run(self: Any) -> None:
        request_id = self.command.request_id
        rank = self._control.rank
        wanted = request_id.startswith("fault-")
        current[0] = Fault(self, request_id, rank) if wanted else None
        try:
            run(self)
        finally:
            current[0] = None

    def faulty_prepare(self: Any, *arguments: Any, **options: Any) -> Any:
        strike("prepare")
        return prepare(self, *arguments, **options)

    def faulty_step(self: Any, *arguments: Any) -> None:
        strike("before")
        step_ended(self, *arguments)

    def faulty_vote(self: Any) -> None:
        vote(self)
        if self.prepared and current[0] is not None and self._denoise_seconds:
            strike("after")

    def faulty_pipeline(self: Any, arguments: Any, watcher: Any) -> Any:
        _between_collectives(strike, self.pipe)
        return decisions(self, arguments, watcher)

    execution.Execution.run = faulty_run
    execution.Execution._vote = faulty_vote
    execution.Execution.step_ended = faulty_step
    execution.Pipeline.prepare = faulty_prepare
    execution.Pipeline.run = faulty_pipeline

    switch = acceleration.Accelerator.switch

    def faulty_switch(self: Any, settings: Any, *arguments: Any, **options: Any) -> None:
        switch(self, settings, *arguments, **options)
        threshold = getattr(settings.method, "residual_diff_threshold", None)
        if threshold == REFUSED_BY_RANK_ONE and torch.distributed.get_rank() == 1:
            raise RuntimeError("injected")

    acceleration.Accelerator.switch = faulty_switch


def _between_collectives(strike: Any, pipe: Any) -> None:
    """Strike where the other ranks are in a collective of the pipeline: within an attention."""
    if getattr(pipe, "_faulty", False):
        return
    pipe._faulty = True

    def inside(*_: Any) -> None:
        strike("inside")

    def decoding(*_: Any) -> None:
        strike("decode")

    pipe.transformer.transformer_blocks[1].register_forward_pre_hook(inside)
    decode = pipe.vae.decode

    def faulty_decode(*arguments: Any, **options: Any) -> Any:
        decoding()
        return decode(*arguments, **options)

    pipe.vae.decode = faulty_decode


if "ditcast_runtime.rank" in sys.orig_argv:
    _install()
