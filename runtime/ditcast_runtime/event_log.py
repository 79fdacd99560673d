"""The log of one generation: appended to by the engine, followed by any number of readers.

Each reader goes at its own pace, so a slow one holds up neither the engine nor the others. What the
outputs take can move to a file after the end, or be lost; a reader sees the same events either way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ditcast_runtime.errors import ResultNotKept, RuntimeFailure
from ditcast_runtime.events import Event, EventKind, OutputChunk, Preview
from ditcast_runtime.spill import SpillFile


@dataclass(frozen=True, slots=True)
class _Moved:
    """Stands in the log for an event whose data lies in a file."""

    event: Event
    chunk: OutputChunk
    """What the event holds, without its data."""
    file: SpillFile
    position: int
    size: int

    async def fetch(self) -> Event:
        """Read the event as it was."""
        data = await asyncio.to_thread(self.file.read, self.position, self.size)
        return replace(self.event, kind=replace(self.chunk, data=data))


class EventLog:
    """Events under sequence numbers from 1, and how it ended.

    Attributes:
        output_bytes: data of all output chunks, wherever it lies.
        memory_bytes: how much of it is held in memory for readers to come.
        ended_at: when the log was closed; None while it is open.
    """

    def __init__(self) -> None:
        self.output_bytes = 0
        self.memory_bytes = 0
        self.ended_at: datetime | None = None
        self._entries: list[Event | _Moved] = []
        self._previews: dict[int, int] = {}
        """Where the newest preview of each output stands."""
        self._failure: RuntimeFailure | None = None
        self._not_kept: tuple[int, ResultNotKept] | None = None
        self._changed = asyncio.Event()

    @property
    def last_sequence(self) -> int:
        """The newest event's number; 0 before the first."""
        return len(self._entries)

    def append(self, kind: EventKind) -> None:
        """Add an event; nothing once the log has ended, as cancel and completion can cross."""
        if self.ended_at is not None:
            return
        if isinstance(kind, OutputChunk):
            self.output_bytes += len(kind.data)
            self.memory_bytes += len(kind.data)
        if isinstance(kind, Preview):
            self._empty_preview(kind.output_index)
            self._previews[kind.output_index] = len(self._entries)
        self._entries.append(
            Event(sequence=len(self._entries) + 1, time=datetime.now(UTC), kind=kind)
        )
        self._wake()

    def drop_previews(self) -> None:
        """Let go of the newest previews too; their events stay, as all superseded ones do."""
        for output_index in tuple(self._previews):
            self._empty_preview(output_index)

    def end(self, failure: RuntimeFailure | None = None) -> bool:
        """Close the log, with the failure that ended it or none; False if it had ended before."""
        if self.ended_at is not None:
            return False
        self.ended_at, self._failure = datetime.now(UTC), failure
        self._wake()
        return True

    def time_of_first(self, kind: type[EventKind]) -> datetime | None:
        """Say when the first event of a kind came; None: not yet."""
        entries = (entry for entry in self._entries if isinstance(entry, Event))
        return next((entry.time for entry in entries if isinstance(entry.kind, kind)), None)

    def pieces(self) -> list[bytes | memoryview]:
        """Give the data of the output chunks that are in memory, in order."""
        entries = (entry for entry in self._entries if isinstance(entry, Event))
        return [entry.kind.data for entry in entries if isinstance(entry.kind, OutputChunk)]

    def move(self, file: SpillFile) -> None:
        """Let go of the outputs, which lie in a file now; readers go on from there.

        Args:
            file: Holds `pieces()` of the log, which has ended, one after the other.
        """
        position = 0
        for index, entry in enumerate(self._entries):
            if isinstance(entry, Event) and isinstance(entry.kind, OutputChunk):
                size = len(entry.kind.data)
                chunk = replace(entry.kind, data=b"")
                self._entries[index] = _Moved(
                    replace(entry, kind=chunk), chunk, file, position, size
                )
                position += size
        self.memory_bytes = 0

    def lose(self, why: ResultNotKept) -> None:
        """Let go of the outputs, which nothing can keep; whoever reads now still gets them.

        The log has ended. Later readers of any of the outputs are refused with `why`.
        """
        last = 0
        # A new list: the readers of now hold the old one, which goes when the last of them does.
        entries = list(self._entries)
        for index, entry in enumerate(entries):
            if isinstance(entry, Event) and isinstance(entry.kind, OutputChunk):
                entries[index] = replace(entry, kind=replace(entry.kind, data=b""))
                last = entry.sequence
        self._entries = entries
        self._not_kept = last, why
        self.memory_bytes = 0

    @property
    def lost(self) -> bool:
        """Whether outputs are gone that later readers would want."""
        return self._not_kept is not None

    async def follow(
        self, after_sequence: int, silence: float
    ) -> AsyncGenerator[Event | None, None]:
        """Give every event after a number, and None after `silence` seconds without one.

        Ends when the log has ended.

        Raises:
            RuntimeFailure: what ended the generation without a result, or ResultNotKept.
        """
        if self._not_kept is not None and after_sequence < self._not_kept[0]:
            raise self._not_kept[1].with_traceback(None)
        entries = self._entries
        position = after_sequence
        while True:
            while position < len(entries):
                position += 1
                yield await _event(entries[position - 1])
            if self.ended_at is not None:
                break
            changed = self._changed
            try:
                async with asyncio.timeout(silence):
                    await changed.wait()
            except TimeoutError:
                yield None
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _empty_preview(self, output_index: int) -> None:
        """Take the data out of an output's newest preview: slow readers do not pile them up."""
        position = self._previews.pop(output_index, None)
        if position is None:
            return
        entry = self._entries[position]
        if isinstance(entry, Event) and isinstance(entry.kind, Preview):
            self._entries[position] = replace(entry, kind=replace(entry.kind, data=b""))

    def _wake(self) -> None:
        # A fresh one for the next change: whoever waits holds the old one.
        self._changed.set()
        self._changed = asyncio.Event()


async def _event(entry: Event | _Moved) -> Event:
    if isinstance(entry, Event):
        return entry
    try:
        return await entry.fetch()
    except OSError as error:
        raise ResultNotKept(error.strerror or "its file cannot be read") from error
