"""The log of one generation: appended to by the engine, followed by any number of readers.

Each reader goes at its own pace, so a slow one holds up neither the engine nor the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

from ditcast_runtime.errors import RuntimeFailure
from ditcast_runtime.events import Event, EventKind


class EventLog:
    """Events under sequence numbers from 1, and how it ended."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._failure: RuntimeFailure | None = None
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def last_sequence(self) -> int:
        """The newest event's number; 0 before the first."""
        return len(self._events)

    def append(self, kind: EventKind) -> None:
        """Add an event; nothing once the log has ended, as cancel and completion can cross."""
        if self._ended:
            return
        self._events.append(
            Event(sequence=len(self._events) + 1, time=datetime.now(UTC), kind=kind)
        )
        self._wake()

    def end(self, failure: RuntimeFailure | None = None) -> bool:
        """Close the log, with the failure that ended it or none; False if it had ended before."""
        if self._ended:
            return False
        self._ended, self._failure = True, failure
        self._wake()
        return True

    async def follow(
        self, after_sequence: int, silence: float
    ) -> AsyncGenerator[Event | None, None]:
        """Give every event after a number, and None after `silence` seconds without one.

        Ends when the log has ended.

        Raises:
            RuntimeFailure: what ended the generation without a result.
        """
        position = after_sequence
        while True:
            while position < len(self._events):
                position += 1
                yield self._events[position - 1]
            if self._ended:
                break
            changed = self._changed
            try:
                async with asyncio.timeout(silence):
                    await changed.wait()
            except TimeoutError:
                yield None
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _wake(self) -> None:
        # A fresh one for the next change: whoever waits holds the old one.
        self._changed.set()
        self._changed = asyncio.Event()
