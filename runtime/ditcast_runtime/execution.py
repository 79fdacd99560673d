"""One generation on one rank: its boundaries, its votes and, on rank 0, its reports.

The boundaries are: prepared, each step, the end. At each all ranks vote; the first verdict other
than GO_ON, or the verdict at the end, is the generation's last vote on every rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import mmap
import os
import re
import resource
from collections.abc import Callable, Collection
from typing import Any

import psutil
import torch

from ditcast_runtime.acceleration import SettingsDiffer
from ditcast_runtime.broadcast import Ballot, ControlGroup
from ditcast_runtime.channel import RankChannel
from ditcast_runtime.events import RankMemory
from ditcast_runtime.generation import Parameters, SeparateCfg
from ditcast_runtime.messages import (
    Denoising,
    Ended,
    FailureKind,
    Outcome,
    Output,
    Preview,
    Run,
    Step,
)
from ditcast_runtime.outputs import Made, NotFinite, OtherSize
from ditcast_runtime.passes import PassesDiffer
from ditcast_runtime.pipeline import Pipeline
from ditcast_runtime.previews.previewer import Previewer, Previewing, Sketch
from ditcast_runtime.steps import ScheduleRefused, Stopwatch

_REFUSALS = (ScheduleRefused, OtherSize, PassesDiffer, ValueError, TypeError)
"""What is raised by checks, which name what they are about."""


class Left(BaseException):
    """Leaves the pipeline at a boundary, on all ranks at the same one.

    Not an `Exception`: nothing inside a pipeline may take it for a failure and go on.
    """

    def __init__(self, verdict: Ballot) -> None:
        self.verdict = verdict


class Execution:
    """One generation on this rank: its boundaries, its votes and, on rank 0, its reports."""

    def __init__(
        self,
        command: Run,
        pipeline: Pipeline,
        separate_cfg: SeparateCfg,
        control: ControlGroup,
        channel: RankChannel | None,
        cancelled: Callable[[int], Collection[int]],
        pictures: dict[str, list[Any]],
        previewer: Previewer | None = None,
    ) -> None:
        """Take what this rank runs with; `channel` is None but on rank 0, which alone reports.

        `cancelled` says which of the batch are to be left.
        """
        self.command = command
        self.prepared = False
        self.steps = 0
        self._denoising = False
        self._pipeline = pipeline
        self._separate_cfg = separate_cfg
        self._control = control
        self._channel = channel
        self._cancelled = cancelled
        self._pictures = pictures
        self._previewing = self._previews(previewer)
        """Of each of the batch that has any."""
        self._watch = Stopwatch()
        self._prepare_seconds = 0.0
        self._denoise_seconds = 0.0
        self._decode_seconds = 0.0

    def run(self) -> None:
        """Go through all boundaries; `Left` at the first whose verdict is not GO_ON."""
        parameters = self.command.parameters
        two = two_passes(self._separate_cfg, parameters)
        batch = [each.parameters for each in self.command.batch]
        arguments = self._pipeline.prepare(batch, self._pictures, two_passes=two)
        self._vote()
        self.prepared = True
        self._prepare_seconds = self._watch.lap()
        with contextlib.ExitStack() as watching:
            for previewing in self._previewing:
                watching.enter_context(previewing.watching())
            made = self._pipeline.run(arguments, self, parameters.output.format)
        if self._channel is not None:
            self._send_outputs(self._channel, made)
        self._vote()
        # Until the slowest rank was through: before that the next generation cannot begin.
        self._decode_seconds = self._watch.lap()

    @property
    def accepted(self) -> bool:
        """Whether the pipeline took its arguments, so that what it raises now is no refusal.

        Pictures, and what belongs to them, it only looks at on the way to the first step.
        """
        return self._denoising if self._pictures else self.prepared

    @property
    def doubtful(self) -> bool:
        """Whether a failure can be the pipeline's answer to what it alone can judge.

        Which pictures it was trained for, and what its own arguments may be, no check beforehand
        knows: until a step has shown that it can work with them, whatever it raises is about them.
        """
        return self.steps == 0 and bool(self._pictures or self.command.parameters.pipeline_kwargs)

    def denoising_began(self, sigmas: tuple[float, ...]) -> None:
        """Report that the first step begins."""
        self._denoising = True
        encode_prompt_seconds = self._watch.lap()
        self._prepare_seconds += encode_prompt_seconds
        if self._channel is not None:
            self._channel.send(
                Denoising(
                    epoch=self.command.epoch,
                    number=self.command.number,
                    sigmas=sigmas,
                    prepare_seconds=self._prepare_seconds,
                    encode_prompt_seconds=encode_prompt_seconds,
                    prompts=self._pipeline.prompts.take_use(),
                )
            )

    def step_ended(self, step: int, total_steps: int, timestep: float, sigma: float | None) -> None:
        """Vote at the boundary, then report what the step was."""
        seconds = self._watch.lap()
        self._denoise_seconds += seconds
        self._vote()
        self.steps = step
        # On every rank: the counters behind it have to advance, and a fault in it shows on all.
        decisions = self._pipeline.accelerator.decisions()
        if self._channel is not None:
            self._channel.send(
                Step(
                    epoch=self.command.epoch,
                    number=self.command.number,
                    step=step,
                    total_steps=total_steps,
                    timestep=timestep,
                    sigma=sigma,
                    seconds=seconds,
                    transformers=decisions,
                )
            )
        for previewing in self._previewing:
            previewing.step_ended(step)
        if self._previewing:
            # It is no part of the next step.
            self._denoise_seconds += self._watch.lap()

    def denoising_ended(self) -> None:
        """Begin to count the time of decoding; what came after the last step counts before it."""
        for previewing in self._previewing:
            previewing.denoising_ended()
        self._denoise_seconds += self._watch.lap()

    def outcome(self, verdict: Ballot) -> Outcome:
        """Name how the generation ended, from its last vote."""
        match verdict:
            case Ballot.CANCEL:
                return Outcome.CANCELLED
            case Ballot.FAILED:
                return Outcome.FAILED if self.prepared else Outcome.VETOED
            case Ballot.GO_ON:
                return Outcome.DONE

    def ended(self, outcome: Outcome) -> Ended:
        """Make this rank's last report about the generation."""
        rank = self._control.rank
        return Ended(
            epoch=self.command.epoch,
            number=self.command.number,
            rank=rank,
            outcome=outcome,
            steps=self.steps,
            memory=rank_memory(rank, self._pipeline.device),
            denoise_seconds=self._denoise_seconds,
            decode_seconds=self._decode_seconds,
            preview_seconds=sum(previewing.seconds for previewing in self._previewing),
        )

    def _vote(self) -> None:
        # Only rank 0 is told of a cancel, so that all ranks hear of it at the same boundary.
        # Of a batch, those that are to be left keep their rows until all are: with fewer rows the
        # kernels and the cache would work on other shapes, and the bytes of the others change.
        cancelled = len(self._cancelled(self.command.number)) == len(self.command.batch)
        verdict = self._control.vote(Ballot.CANCEL if cancelled else Ballot.GO_ON)
        if verdict is not Ballot.GO_ON:
            raise Left(verdict)

    def _previews(self, previewer: Previewer | None) -> list[Previewing]:
        """Give what makes the previews, on rank 0 and for those of the batch that have any."""
        channel, batch = self._channel, self.command.batch
        if channel is None or previewer is None:
            return []
        return [
            Previewing(
                previewer,
                each.parameters,
                each.previews,
                functools.partial(self._send_sketch, channel, index),
                (index, len(batch)),
            )
            for index, each in enumerate(batch)
            if each.previews.every_n_steps > 0
        ]

    def _send_sketch(self, channel: RankChannel, index: int, sketch: Sketch) -> None:
        channel.send(
            Preview(
                epoch=self.command.epoch,
                number=self.command.number,
                step=sketch.step,
                count=sketch.count,
                width=sketch.width,
                height=sketch.height,
                pixels=sketch.pixels,
                index=index,
            )
        )

    def _send_outputs(self, channel: RankChannel, made: Made) -> None:
        """Send each of the batch its share of what was made, but to those that have left."""
        share = len(made.outputs) // len(self.command.batch)
        left = self._cancelled(self.command.number)
        for index in range(len(self.command.batch)):
            if index not in left:
                own = made.outputs[index * share : (index + 1) * share]
                self._send_output(channel, dataclasses.replace(made, outputs=own), index)

    def _send_output(self, channel: RankChannel, made: Made, index: int) -> None:
        descriptor = os.memfd_create("ditcast-output", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, made.size_bytes * len(made.outputs))
            with mmap.mmap(descriptor, made.size_bytes * len(made.outputs)) as memory:
                for each in made.outputs:
                    memory.write(each)
            output = Output(
                epoch=self.command.epoch,
                number=self.command.number,
                index=index,
                count=len(made.outputs),
                size_bytes=made.size_bytes,
                width=made.width or self.command.parameters.width,
                height=made.height or self.command.parameters.height,
                num_frames=made.num_frames,
            )
            channel.send(output, descriptor)
        finally:
            os.close(descriptor)


def refused_field(error: Exception, parameters: Parameters) -> str:
    """Name the request's field that a refusal is about: one that its message names, if any does.

    It only helps the reader; what becomes of the generation does not depend on the text.
    """
    if isinstance(error, ScheduleRefused):
        return "sigmas" if parameters.sigmas else "num_inference_steps"
    words = set(re.findall(r"\w+", str(error)))
    for name in parameters.pipeline_kwargs:
        if name in words:
            return f"pipeline_kwargs.{name}"
    rest = "images" if parameters.images else "pipeline_kwargs"
    if not isinstance(error, _REFUSALS):
        return rest  # It speaks of tensors: their "size" and "output" are no fields.
    own = (field.name for field in dataclasses.fields(parameters))
    return next((name for name in own if name in words), rest)


def two_passes(rule: SeparateCfg, parameters: Parameters) -> bool:
    """Say whether each step of this generation makes two forward passes."""
    return rule.two_passes(
        negative_prompt=parameters.negative_prompt,
        guidance_scale=parameters.guidance_scale,
        true_cfg_scale=parameters.true_cfg_scale,
    )


def failure_kind(error: Exception, *, prepared: bool, doubtful: bool = False) -> FailureKind:
    """Name what sort of exception left the pipeline, by its type and by when it did."""
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            return FailureKind.OUT_OF_MEMORY
        case NotFinite():
            return FailureKind.NAN_OUTPUT
        case SettingsDiffer():
            return FailureKind.SETTINGS_DIFFER
        case ScheduleRefused() | OtherSize() | PassesDiffer():
            return FailureKind.REFUSED
        case _ if doubtful or (not prepared and isinstance(error, (ValueError, TypeError))):
            return FailureKind.REFUSED
        case _:
            return FailureKind.FAILED


def rank_memory(rank: int, device: torch.device) -> RankMemory:
    """Give peak and free bytes: of the device, or resident and available on the host."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return RankMemory(rank=rank, peak_bytes=peak, free_bytes=free)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return RankMemory(rank=rank, peak_bytes=peak, free_bytes=psutil.virtual_memory().available)
