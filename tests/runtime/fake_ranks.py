"""Made-up ranks at the ends of real socketpairs, a clock that stands, and what ranks say."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ditcast_runtime.channel import RankChannel, ServiceChannel
from ditcast_runtime.events import RankMemory
from ditcast_runtime.generation import OutputOptions, Parameters
from ditcast_runtime.member import Member
from ditcast_runtime.messages import Ended, Failed, FailureKind, Outcome, Output, Report, Step
from ditcast_runtime.settings import CacheSettings

STEPS = 2
SIDE = 2
KILLED = -9

PARAMETERS = Parameters(
    prompt="a circle",
    negative_prompt=None,
    width=SIDE,
    height=SIDE,
    num_inference_steps=STEPS,
    guidance_scale=None,
    true_cfg_scale=None,
    seed=1,
    num_images=1,
    sigmas=(),
    pipeline_kwargs={},
    output=OutputOptions(),
    cache=CacheSettings(),
)


class StandingClock(asyncio.SelectorEventLoop):
    """A loop whose clock goes on only when it is told to."""

    now = 0.0

    def time(self) -> float:
        """Give the time as it was set."""
        return self.now


class FakeProcess:
    """A process that ends when it is told to."""

    pid = 2**22 + 1  # One that no process can have.

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    def end(self, code: int) -> None:
        """End it, once."""
        if self.returncode is None:
            self.returncode = code
            self._ended.set()

    async def wait(self) -> int:
        """Wait for its end."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode


@dataclass
class FakeRank:
    """One rank's end of the channel, and what it has said in the run that goes on."""

    channel: RankChannel
    end: socket.socket
    process: FakeProcess
    script: list[Callable[[], None]] = field(default_factory=list)
    """What it has still to say before it is through."""


class FakeMember(Member):
    """A member whose process is made up."""

    made: list[FakeRank]

    @classmethod
    async def spawn(
        cls,
        rank: int,
        threads: int,  # noqa: ARG003 (as the real one)
        stacks: Path,
        on_report: Callable[[Report, int | None], None],
        on_closed: Callable[[str], None],
    ) -> Member:
        """Make a rank at the other end of a new socketpair."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        process = FakeProcess()
        cls.made.append(FakeRank(RankChannel(theirs), theirs, process))
        channel = ServiceChannel(ours, on_report, on_closed)
        return cls(rank, cast("asyncio.subprocess.Process", process), channel, stacks)

    def kill(self) -> None:
        """End the process and close the channel."""
        cast("FakeProcess", self.process).end(KILLED)
        self.channel.close()


def descriptors() -> int:
    """Count what this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def step(epoch: int, number: int, step: int) -> Step:
    """Report one step."""
    return Step(
        epoch=epoch,
        number=number,
        step=step,
        total_steps=STEPS,
        timestep=1.0,
        sigma=None,
        seconds=0.1,
        transformers=(),
    )


def output_of(epoch: int, number: int) -> Output:
    """Report pixels, which come in a descriptor beside it."""
    return Output(
        epoch=epoch, number=number, count=1, size_bytes=3 * SIDE * SIDE, width=SIDE, height=SIDE
    )


def failed(epoch: int, number: int, rank: int) -> Failed:
    """Report an exception."""
    return Failed(
        epoch=epoch,
        number=number,
        rank=rank,
        step=STEPS,
        kind=FailureKind.FAILED,
        error_type="RuntimeError",
        message="no",
    )


def ended(epoch: int, number: int, rank: int) -> Ended:
    """Report that a rank is through."""
    return Ended(
        epoch=epoch,
        number=number,
        rank=rank,
        outcome=Outcome.DONE,
        steps=STEPS,
        memory=RankMemory(rank=rank, peak_bytes=1, free_bytes=1),
        denoise_seconds=0.2,
        decode_seconds=0.1,
    )
