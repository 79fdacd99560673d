"""One accepted generation in the service's memory: its log, its state, and who reads it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ditcast_runtime.config import ClientLimits, Configuration
from ditcast_runtime.event_log import EventLog
from ditcast_runtime.events import Completed, Event, RequestWarning, StepCompleted
from ditcast_runtime.generation import Parameters, PreviewOptions, Priority, State
from ditcast_runtime.pictures import Pictures

Settle = Callable[[], tuple[Parameters, tuple[RequestWarning, ...]]]
"""Settles a request anew under the configuration in force; raises InvalidRequest or
UnsupportedRequest where it can no longer run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What the edge hands over: a request that is settled, and how its reader wants it treated."""

    request_id: str
    identity: str = ""
    """Who asks; ids and lists are each caller's own. Empty: nobody authenticates."""
    client: str = ""
    """For whom it counts: the one who asks, else where it was asked from. Clients take turns."""
    limits: ClientLimits = field(default_factory=ClientLimits)
    """What this client may have at once."""
    digest: bytes
    """Of the request's content, to tell the same from other content under one id."""
    parameters: Parameters
    pictures: Pictures | None = None
    """The input pictures, in the order of `parameters.images`; closed when it ends."""
    warnings: tuple[RequestWarning, ...] = ()
    """What its reader should know once it starts."""
    revision: int
    """Of the configuration under which the parameters were settled."""
    settle: Settle
    timeout: float | None = None
    """Seconds from now after which it ends with DeadlineExceeded; None: no limit."""
    priority: Priority = Priority.NORMAL
    continues: bool = False
    """Whether it goes on without any reader."""
    reattach_window: float = 0.0
    """Seconds that it goes on without a reader before it is cancelled."""
    previews: PreviewOptions = field(default_factory=PreviewOptions)
    shadow_comparison: bool = False
    """Whether the same is run once more without a cache, and compared."""
    keeps_result: bool = True
    """Whether anybody may want the result once those who read now have it."""

    def free_pictures(self) -> None:
        """Give the memory of its input pictures back, as no run will need them any more."""
        if self.pictures is not None:
            self.pictures.close()


class Generation:
    """One accepted generation. The engine writes it; readers follow it."""

    def __init__(
        self,
        submission: Submission,
        on_abandoned: Callable[[Generation], None],
        silence: float,
        serial: int,
    ) -> None:
        self.submission = submission
        self.parameters = submission.parameters
        self.warnings = submission.warnings
        self.revision = submission.revision
        self.configuration: Configuration | None = None
        """What was in force when it started; None before."""
        self.attempt = 1
        self.stage = ""
        """Where the ranks are with it: prepare, denoise or decode."""
        self.lost_at: list[str] = []
        """The stages at which groups were lost with it."""
        self.log = EventLog()
        self.state = State.QUEUED
        self.number = 0
        self.alone = False
        """Whether it shares no call any more, as it begins again."""
        self.batch_size = 1
        """How many share the call of the pipeline that it has, or had last."""
        self.batch_index = 0
        """Its place among them."""
        self.spared = 0
        """Runs that failed with a batch, and do not count as attempts."""
        self.group = 0
        """Index of the group of ranks that has it, or had it last."""
        self.steps: list[StepCompleted] = []
        self.completed: Completed | None = None
        """Its last event, if it came to a result."""
        self.pixels: list[bytes] = []
        """Its outputs before they were encoded, where they are to be compared."""
        self.serial = serial
        """Grows with each that the process accepts."""
        self.created_at = datetime.now(UTC)
        self.accepted_at = time.monotonic()
        self.started_at = 0.0
        self.taken_at = 0.0
        """When it got the ranks that it has."""
        self.reported_at = 0.0
        """When they last said something about it."""
        self.prepare_seconds = 0.0
        self.deadline: asyncio.TimerHandle | None = None
        self.readers = 0
        self._on_abandoned = on_abandoned
        self._silence = silence
        self._window: asyncio.TimerHandle | None = None
        """Runs while nobody reads; its end is the end of the generation."""

    @property
    def request_id(self) -> str:
        """The caller's id for it."""
        return self.submission.request_id

    @property
    def input_bytes(self) -> int:
        """Bytes of its input pictures, as files and as pixels."""
        pictures = self.submission.pictures
        files = sum(image.size_bytes for image in self.parameters.images)
        return files + (0 if pictures is None else pictures.size_bytes)

    @property
    def last_sequence(self) -> int:
        """The newest event's number; 0 before the first."""
        return self.log.last_sequence

    @property
    def output_bytes(self) -> int:
        """Bytes of encoded outputs so far."""
        return self.log.output_bytes

    @property
    def steps_done(self) -> int:
        """Denoising steps that have ended."""
        return len(self.steps)

    async def follow(self, after_sequence: int = 0) -> AsyncGenerator[Event | None, None]:
        """Give its events to one reader, and None after `heartbeat_interval` of silence.

        When the last reader leaves before the end, the generation is cancelled, unless it goes on
        without any or a reader is there again within the window that was asked for.

        Raises:
            RuntimeFailure: what ended it without a result.
        """
        self.readers += 1
        self._stop_window()
        try:
            async with aclosing(self.log.follow(after_sequence, self._silence)) as events:
                async for event in events:
                    yield event
        finally:
            self.readers -= 1
            if self.readers == 0:
                self._is_left()

    def retire(self) -> None:
        """Let nothing end it any more, as it has ended; its outputs are all that is kept."""
        if self.deadline is not None:
            self.deadline.cancel()
        self._stop_window()
        if self.readers == 0:
            self.log.drop_previews()

    def _is_left(self) -> None:
        if self.state.final:
            self.log.drop_previews()
            return
        if self.submission.continues:
            return
        if self.submission.reattach_window <= 0:
            self._on_abandoned(self)
            return
        loop = asyncio.get_running_loop()
        self._window = loop.call_later(self.submission.reattach_window, self._on_abandoned, self)

    def _stop_window(self) -> None:
        if self._window is not None:
            self._window.cancel()
            self._window = None
