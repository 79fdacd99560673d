"""What waits, and in which order it runs: no clock, no tasks, no numbers of bytes or seconds."""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ditcast_runtime.generation import Priority

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Entry(Generic[T]):
    item: T
    number: int
    """In the order in which they came."""


@dataclass(slots=True, eq=False)
class _Lines(Generic[T]):
    """What waits of one priority: a line for each client, in the order of their turns."""

    lines: OrderedDict[str, deque[_Entry[T]]] = field(default_factory=OrderedDict)
    overtaken: int = 0
    """How many of higher priority went before the next one here that came after it, since one of
    these went."""

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))

    @property
    def next(self) -> _Entry[T]:
        """The one whose turn it is; there must be one."""
        return next(iter(self.lines.values()))[0]

    def add(self, entry: _Entry[T], client: str) -> None:
        """Add behind the others of its client, who waits for a turn after all that wait for one."""
        if not self.lines:
            self.overtaken = 0
        self.lines.setdefault(client, deque()).append(entry)

    def take(self) -> _Entry[T]:
        """Take out the next one; its client's next turn comes after everybody else's."""
        client, line = next(iter(self.lines.items()))
        entry = line.popleft()
        if line:
            self.lines.move_to_end(client)
        else:
            del self.lines[client]
        self.overtaken = 0
        return entry

    def remove(self, item: T) -> bool:
        """Take one out wherever it stands, which costs its client no turn."""
        for client, line in self.lines.items():
            for entry in line:
                if entry.item is item:
                    line.remove(entry)
                    if not line:
                        del self.lines[client]
                    return True
        return False

    def would_be_last(self, client: str) -> bool:
        """Say whether one more of a client would go after all these."""
        own = len(self.lines.get(client, ()))
        longest = own + 1  # Of those whose turn comes before its own.
        for each, line in self.lines.items():
            if each == client:
                longest = own
            if len(line) > longest:
                return False
        return True

    def copy(self) -> _Lines[T]:
        """Give another that can be taken from."""
        lines = OrderedDict((client, line.copy()) for client, line in self.lines.items())
        return _Lines(lines, self.overtaken)


class Scheduler(Generic[T]):
    """A bounded queue: higher priorities first; within each, clients take turns.

    A turn is one generation, a client's own go first come first served, and whoever begins to wait
    goes after at most one of each other client. Turns and not seconds, as what a generation takes
    is only known once its kind has run, and a place that moves with each measurement is none.

    Nobody starves: after so many as `max_overtakes` later ones of higher priority went before the
    next of a lower one, that goes before all later ones. The bound is not each waiting one's own,
    else a hundred of one client, tired together, would go before everybody's later ones.
    """

    def __init__(self, capacity: int, max_overtakes: int) -> None:
        self.capacity = capacity
        self.max_overtakes = max_overtakes
        self._front: deque[T] = deque()
        self._queues: dict[Priority, _Lines[T]] = {
            priority: _Lines() for priority in sorted(Priority, reverse=True)
        }
        self._added = 0

    def __len__(self) -> int:
        return len(self._front) + sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[T]:
        """Give all in the order in which they would run if nothing more came, as far as is asked.

        What comes or goes meanwhile is not seen.
        """
        front = tuple(self._front)
        rehearsed = {priority: queue.copy() for priority, queue in self._queues.items()}
        yield from front
        while (entry := _take(rehearsed, self.max_overtakes)) is not None:
            yield entry.item

    @property
    def full(self) -> bool:
        """Whether nothing more can be added."""
        return len(self) >= self.capacity

    def waiting_of(self, client: str) -> int:
        """Count what waits of a client, apart from what was put back."""
        return sum(len(queue.lines.get(client, ())) for queue in self._queues.values())

    def is_last(self, priority: Priority, client: str) -> bool:
        """Say whether one more of these is sure to run after all others, without looking."""
        below = any(queue.lines for each, queue in self._queues.items() if each < priority)
        return not below and self._queues[priority].would_be_last(client)

    def add(self, item: T, priority: Priority, client: str) -> None:
        """Let one wait for its client's turn; the caller asks for `full` before."""
        self._added += 1
        self._queues[priority].add(_Entry(item, self._added), client)

    def put_back(self, item: T) -> None:
        """Add before everything else: it was taken, so its turn has come already.

        Allowed when full too, and overtakes nobody a second time.
        """
        self._front.appendleft(item)

    def take(self) -> T | None:
        """Take the next one out, or None."""
        if self._front:
            return self._front.popleft()
        entry = _take(self._queues, self.max_overtakes)
        return None if entry is None else entry.item

    def take_alike(self, alike: Callable[[T], bool], count: int) -> list[T]:
        """Take out up to so many of a kind, in the order in which they would run.

        They go along with one that was taken, so that it costs their clients no turn and counts as
        overtaking nobody: whose turn it is among the others is what it was.
        """
        found = list(itertools.islice(filter(alike, self), count))
        for item in found:
            self.remove(item)
        return found

    def remove(self, item: T) -> bool:
        """Take one out wherever it stands; False if it does not wait here."""
        if item in self._front:
            self._front.remove(item)
            return True
        return any(queue.remove(item) for queue in self._queues.values())


def _take(queues: dict[Priority, _Lines[T]], max_overtakes: int) -> _Entry[T] | None:
    """Take out the next one of the priority whose turn it is; the highest stands first."""
    waiting = [queue for queue in queues.values() if queue.lines]
    if not waiting:
        return None
    place, chosen = next(
        (place, queue)
        for place, queue in enumerate(waiting)
        if not any(
            tired.overtaken >= max_overtakes and tired.next.number < queue.next.number
            for tired in waiting[place + 1 :]
        )
    )
    taken = chosen.take()
    for lower in waiting[place + 1 :]:
        lower.overtaken += taken.number > lower.next.number
    return taken
