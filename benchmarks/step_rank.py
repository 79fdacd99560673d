"""One rank for the cost of a step: `python -m benchmarks.step_rank`, started by `steps`.

Runs the same generation by turns in two ways: the pipeline called directly, and a real `Execution`
with the real channel, inbox and control group. Both read the process's CPU clock at the same place,
the pipeline's step callback, so that what differs between two readings is the service's work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import diffusers
import torch
import torch.distributed as dist

from benchmarks.plan import NEGATIVE_PROMPT, PROMPT, STEP_SIDE, TRUE_CFG_SCALE
from ditcast_runtime import facts
from ditcast_runtime.broadcast import ControlGroup
from ditcast_runtime.channel import RankChannel
from ditcast_runtime.execution import Execution, two_passes
from ditcast_runtime.generation import OutputOptions, Parameters
from ditcast_runtime.launches import Launch
from ditcast_runtime.loading import resolve_device
from ditcast_runtime.messages import (
    Outcome,
    Run,
)
from ditcast_runtime.pipeline import Pipeline
from ditcast_runtime.rank import Inbox
from ditcast_runtime.source import locate
from ditcast_runtime.warm_up import warm_up


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """What one rank measured; times in seconds."""

    direct: list[list[float]] = field(default_factory=list)
    """CPU time of the process between the ends of two steps, for each direct call."""
    executed: list[list[float]] = field(default_factory=list)
    """The same for each execution."""
    boundary_cpu: list[float] = field(default_factory=list)
    """CPU time of the process within each step boundary of the executions."""
    boundary_wall: list[float] = field(default_factory=list)
    """Its wall time, with the wait for the other ranks."""


class _TimedExecution(Execution):
    """An execution that reads the clocks around each of its step boundaries."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - passed on as they are
        super().__init__(*arguments)
        self.ends: list[float] = []
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def step_ended(self, step: int, total_steps: int, timestep: float, sigma: float | None) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        super().step_ended(step, total_steps, timestep, sigma)
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        self.ends.append(cpu)


def _in_silence(stage: str, done: int = 0, total: int = 0) -> None:
    """Tell nobody how far loading is."""
    del stage, done, total


class _Bench:
    """One loaded rank and its two ways to run a generation."""

    def __init__(self, launch: Launch, channel: RankChannel, steps: int) -> None:
        self._launch = launch
        self._channel = channel if launch.rank == 0 else None
        self._inbox = Inbox(channel, launch)
        self._control = ControlGroup(launch.rank, launch.world_size)
        device = resolve_device(launch.device, launch.rank)
        source = locate(launch)
        self._pipeline = Pipeline.load(launch, source.folder, device, _in_silence)
        defaults = facts.model_defaults(source.folder)
        found = facts.describe(self._pipeline, launch, source, defaults)
        found = warm_up(self._pipeline, launch, found)
        self._separate_cfg = found.separate_cfg
        self._parameters = _parameters(launch, steps)
        self._number = 0

    def direct(self) -> list[float]:
        """Call the pipeline as a script would; give the CPU clock at the end of each step."""
        ends: list[float] = []

        def read_clocks(*_: Any) -> dict[str, Any]:  # noqa: ANN401 - the pipeline's own
            # As many readings as an execution makes.
            readings = [read() for read in _CLOCKS]
            ends.append(readings[1])
            return {}

        pipeline = self._pipeline
        two = two_passes(self._separate_cfg, self._parameters)
        arguments = pipeline.prepare([self._parameters], two_passes=two)
        pipeline.pipe.set_progress_bar_config(disable=True)
        pipeline.pipe(
            **arguments,
            callback_on_step_end=read_clocks,
            callback_on_step_end_tensor_inputs=[],
            output_type="pt",
        )
        pipeline.clean_up(None)
        return ends

    def execute(self) -> _TimedExecution:
        """Run it as the rank's loop does, from the broadcast copy of its command."""
        self._number += 1
        command = Run(
            epoch=self._launch.epoch,
            number=self._number,
            request_id=f"bench-{self._number}",
            parameters=self._parameters,
        )
        self._control.begin(command if self._launch.rank == 0 else None)
        command_copy = self._control.finish()
        execution = _TimedExecution(
            command_copy,
            self._pipeline,
            self._separate_cfg,
            self._control,
            self._channel,
            self._inbox.cancelled,
            {},
        )
        execution.run()
        self._pipeline.clean_up(None)
        if self._channel is not None:
            self._channel.send(execution.ended(Outcome.DONE))
        return execution

    def pairs(self, count: int) -> Readings:
        """Run pairs, each in the other order than the one before; the first does not count."""
        readings = Readings()
        for pair in range(count + 1):
            if self._launch.world_size > 1:
                dist.barrier()
            if pair % 2:
                execution, direct = self.execute(), self.direct()
            else:
                direct, execution = self.direct(), self.execute()
            if pair:
                readings.direct.append(_differences(direct))
                readings.executed.append(_differences(execution.ends))
                readings.boundary_cpu.extend(execution.cpu)
                readings.boundary_wall.extend(execution.wall)
            print("pair", flush=True)
        return readings


_CLOCKS = (time.perf_counter, time.process_time, time.process_time, time.perf_counter)


def _differences(ends: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(ends)]


def _parameters(launch: Launch, steps: int) -> Parameters:
    return Parameters(
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        width=STEP_SIDE,
        height=STEP_SIDE,
        num_inference_steps=steps,
        guidance_scale=None,
        true_cfg_scale=TRUE_CFG_SCALE,
        seed=7,
        num_images=1,
        sigmas=(),
        pipeline_kwargs={},
        output=OutputOptions(),
        cache=launch.acceleration.cache,
    )


def _join(launch: Launch) -> None:
    if launch.world_size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{launch.store}",
            rank=launch.rank,
            world_size=launch.world_size,
        )


def main() -> None:
    """Join, load, measure, and write the readings as the last line."""
    parser = argparse.ArgumentParser(prog="benchmarks.step_rank")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()
    channel = RankChannel(socket.socket(fileno=arguments.channel))
    first = channel.receive(60.0)
    if first is None or not isinstance(first.command, Launch):
        raise SystemExit("the first frame was no launch")
    launch = first.command
    diffusers.utils.logging.disable_progress_bar()
    torch.set_num_threads(launch.threads)
    _join(launch)
    readings = _Bench(launch, channel, arguments.steps).pairs(arguments.pairs)
    print(json.dumps(asdict(readings)), flush=True)


if __name__ == "__main__":
    main()
    # As the ranks do: skips a teardown in which gloo's threads may wait for each other.
    sys.stdout.flush()
    os._exit(0)
