"""One accepted generation in the service's memory: its log, its state, and who reads it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ditcast_runtime.event_log import EventLog
from ditcast_runtime.events import Event, RequestWarning, StepCompleted
from ditcast_runtime.generation import Parameters, State


class Generation:
    """One accepted generation. The engine writes it; readers follow it."""

    def __init__(
        self,
        request_id: str,
        digest: bytes,
        parameters: Parameters,
        warnings: tuple[RequestWarning, ...],
        on_abandoned: Callable[[Generation], None],
        silence: float,
    ) -> None:
        self.request_id = request_id
        self.digest = digest
        self.parameters = parameters
        self.warnings = warnings
        self.log = EventLog()
        self.state = State.QUEUED
        self.number = 0
        self.steps: list[StepCompleted] = []
        self.accepted_at = time.monotonic()
        self.started_at = 0.0
        self.output_bytes = 0
        self.deadline: asyncio.TimerHandle | None = None
        self._on_abandoned = on_abandoned
        self._silence = silence
        self._readers = 0

    @property
    def last_sequence(self) -> int:
        """The newest event's number; 0 before the first."""
        return self.log.last_sequence

    @property
    def steps_done(self) -> int:
        """Denoising steps that have ended."""
        return len(self.steps)

    async def follow(self, after_sequence: int = 0) -> AsyncGenerator[Event | None, None]:
        """Give its events to one reader, and None after `heartbeat_interval` of silence.

        When the last reader leaves before the end, the generation is cancelled.

        Raises:
            RuntimeFailure: what ended it without a result.
        """
        self._readers += 1
        try:
            async with aclosing(self.log.follow(after_sequence, self._silence)) as events:
                async for event in events:
                    yield event
        finally:
            self._readers -= 1
            if self._readers == 0 and not self.state.final:
                self._on_abandoned(self)
