"""What waits, in which order, and which durations were measured: no clock, no tasks."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar

_REMEMBERED = 64
"""Durations kept of each kind."""

_KINDS = 256
"""Kinds remembered; the oldest goes first, so that odd sizes cannot fill the memory."""

_ENOUGH = 3
"""Steps of a kind after which their median is trusted."""


class Waiting(Protocol):
    """What the scheduler holds."""

    @property
    def request_id(self) -> str:
        """Whose it is."""
        ...


T = TypeVar("T", bound=Waiting)


class Scheduler(Generic[T]):
    """A bounded queue, first come first served."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._queue: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[T]:
        return iter(self._queue)

    @property
    def full(self) -> bool:
        """Whether nothing more can be added."""
        return len(self._queue) >= self.capacity

    def add(self, item: T) -> None:
        """Add at the end."""
        self._queue.append(item)

    def take(self) -> T | None:
        """Take the next one out, or None."""
        return self._queue.popleft() if self._queue else None

    def remove(self, item: T) -> bool:
        """Take one out wherever it stands; False if it does not wait here."""
        try:
            self._queue.remove(item)
        except ValueError:
            return False
        return True


class Durations:
    """Measured seconds by kind: of steps for the watchdog, of generations for the estimates."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, deque[float]] = {}

    def record(self, kind: Hashable, seconds: float) -> None:
        """Remember one measurement."""
        if kind not in self._seconds and len(self._seconds) >= _KINDS:
            del self._seconds[next(iter(self._seconds))]
        self._seconds.setdefault(kind, deque(maxlen=_REMEMBERED)).append(seconds)

    def median(self, kind: Hashable) -> float | None:
        """Give the median of a kind once enough are known."""
        known = self._seconds.get(kind, ())
        return statistics.median(known) if len(known) >= _ENOUGH else None
