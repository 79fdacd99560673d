"""Has the generations of one series made, each an ordinary one in its turn, and takes the pixels.

A series waits where there is no room, as whoever asked for one generation after another would; only
its first is refused, while nothing is lost by that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, cast

from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast_runtime.accepted import Submission
from ditcast_runtime.errors import ClientLimitReached, QueueFull, TooManyBytes
from ditcast_runtime.events import Completed, Event, OutputChunk, Started, StepCompleted
from ditcast_runtime.generation import Parameters, State
from ditcast_service.intake import Intake
from ditcast_service.streaming import Generation

_LONGEST_PAUSE_SECONDS = 5.0
"""Before it is tried again, so that whoever watches hears something meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Where a generation is."""

    state: State
    step: int
    total_steps: int
    """0: not known yet."""


Watch = Callable[[Moment], Awaitable[None]]
"""Is told at each step, and after each silence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Painted:
    """What one generation came to."""

    parameters: Parameters
    revision: int
    """Of the configuration that made it."""
    pixels: bytes
    """RGB, 8 bits each; of a video frame by frame."""
    denoise_seconds: float
    cached_steps: int
    """Of the main transformer."""


class SubmittingEngine(Protocol):
    """What a series needs of the engine."""

    def submit(self, submission: Submission) -> Generation:
        """Take a generation; raises QueueFull, NotServing or RequestIdReused."""
        ...


class Painter:
    """Makes the generations of a series.

    Args:
        engine: Who runs them.
        intake: Who settles them.
        name: What their ids begin with.
        seconds_left: Gives the time until the caller's deadline; None: there is none.
    """

    def __init__(
        self,
        engine: SubmittingEngine,
        intake: Intake,
        name: str,
        seconds_left: Callable[[], float | None],
    ) -> None:
        self._engine = engine
        self._intake = intake
        self._name = name
        self._seconds_left = seconds_left
        self.done = 0
        """Generations that came to a result."""

    async def paint(self, request: GenerateRequest, watch: Watch) -> Painted:
        """Have one made; leaving here cancels it at its next step.

        Raises:
            RuntimeFailure: it was refused, or ended without a result.
        """
        generation = await self._submit(request, watch)
        # From here to the first event nothing may be awaited: see `Generate`.
        events = cast("AsyncGenerator[Event | None]", generation.follow())
        gathered = _Gathered()
        async with aclosing(events):
            async for event in events:
                if event is None or gathered.take(event):
                    await watch(
                        Moment(
                            state=generation.state,
                            step=generation.steps_done,
                            total_steps=gathered.total_steps,
                        )
                    )
        self.done += 1
        return gathered.painted()

    async def _submit(self, request: GenerateRequest, watch: Watch) -> Generation:
        request_id = f"{self._name}-{self.done + 1}"
        while True:
            submission = await self._intake.take(
                request, request_id, self._seconds_left(), keeps_result=False
            )
            try:
                return self._engine.submit(submission)
            except (QueueFull, TooManyBytes, ClientLimitReached) as full:
                submission.free_pictures()
                if not self.done or full.retry_after is None:
                    raise
                seconds = full.retry_after.total_seconds()
            await watch(Moment(state=State.QUEUED, step=0, total_steps=0))
            await asyncio.sleep(min(seconds, _LONGEST_PAUSE_SECONDS))


class _Gathered:
    """What is kept of the events of one generation."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._chunks: list[bytes | memoryview] = []
        self._completed: Completed | None = None

    @property
    def total_steps(self) -> int:
        return 0 if self._started is None else self._started.parameters.num_inference_steps

    def take(self, event: Event) -> bool:
        """Keep what is needed; give whether whoever watches should know."""
        match event.kind:
            case Started():
                self._started = event.kind
            case OutputChunk(offset=0):
                # Of a generation that began again, the earlier ones are void.
                self._chunks = [event.kind.data]
            case OutputChunk():
                self._chunks.append(event.kind.data)
            case Completed():
                self._completed = event.kind
            case _:
                return isinstance(event.kind, StepCompleted)
        return False

    def painted(self) -> Painted:
        """Put it together, at the end of a log that ended well: all of it has come."""
        if self._started is None or self._completed is None:
            raise RuntimeError("a log that ended well lacked its first or last event")
        cache = self._completed.cache
        return Painted(
            parameters=self._started.parameters,
            revision=self._started.configuration_revision,
            pixels=b"".join(self._chunks),
            denoise_seconds=self._completed.timings.denoise,
            cached_steps=len(cache[0].cached_steps) if cache else 0,
        )
