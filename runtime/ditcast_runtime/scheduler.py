"""What waits, and in which order it runs: no clock, no tasks, no numbers of bytes or seconds."""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ditcast_runtime.generation import Priority

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Entry(Generic[T]):
    item: T
    number: int
    """In the order in which they came."""
    overtaken: int = 0
    """How many that came later, of higher priority, went before it."""


class Scheduler(Generic[T]):
    """A bounded queue: higher priorities first, first come first served within each.

    Nobody starves: after `max_overtakes` later ones of higher priority went before one, it goes
    before all later ones. Only heads can be at that bound first, as whoever overtakes one overtakes
    all before it of the same priority.
    """

    def __init__(self, capacity: int, max_overtakes: int) -> None:
        self.capacity = capacity
        self.max_overtakes = max_overtakes
        self._front: deque[T] = deque()
        self._queues: dict[Priority, deque[_Entry[T]]] = {
            priority: deque() for priority in sorted(Priority, reverse=True)
        }
        self._added = 0

    def __len__(self) -> int:
        return len(self._front) + sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[T]:
        return iter(self.positions())

    @property
    def full(self) -> bool:
        """Whether nothing more can be added."""
        return len(self) >= self.capacity

    def is_last(self, priority: Priority) -> bool:
        """Say whether one of this priority is sure to run after all others, without looking."""
        return not any(self._queues[lower] for lower in self._below(priority))

    def add(self, item: T, priority: Priority) -> None:
        """Add behind the others of its priority; the caller asks for `full` before."""
        self._added += 1
        self._queues[priority].append(_Entry(item, self._added))

    def put_back(self, item: T) -> None:
        """Add before everything else: it was taken, so its turn has come already.

        Allowed when full too, and overtakes nobody a second time.
        """
        self._front.appendleft(item)

    def take(self) -> T | None:
        """Take the next one out, or None."""
        if self._front:
            return self._front.popleft()
        heads = {priority: queue[0] for priority, queue in self._queues.items() if queue}
        if not heads:
            return None
        priority = self._next({each: (head, head.overtaken) for each, head in heads.items()})
        taken = self._queues[priority].popleft()
        for lower in self._below(priority):
            for entry in self._queues[lower]:
                if entry.number > taken.number:
                    break
                entry.overtaken += 1
        return taken.item

    def remove(self, item: T) -> bool:
        """Take one out wherever it stands; False if it does not wait here."""
        if item in self._front:
            self._front.remove(item)
            return True
        for queue in self._queues.values():
            for entry in queue:
                if entry.item is item:
                    queue.remove(entry)
                    return True
        return False

    def positions(self) -> list[T]:
        """List all in the order in which they would run if nothing more came."""
        order = list(self._front)
        waiting = {priority: list(queue) for priority, queue in self._queues.items()}
        # Numbers of those that went in this listing: rising, as each priority is served in order.
        gone: dict[Priority, list[int]] = {priority: [] for priority in waiting}

        def overtaken(priority: Priority, entry: _Entry[T]) -> int:
            higher = (numbers for each, numbers in gone.items() if each > priority)
            return entry.overtaken + sum(len(n) - bisect(n, entry.number) for n in higher)

        while True:
            heads = {
                priority: entries[len(gone[priority])]
                for priority, entries in waiting.items()
                if len(gone[priority]) < len(entries)
            }
            if not heads:
                return order
            priority = self._next(
                {each: (head, overtaken(each, head)) for each, head in heads.items()}
            )
            order.append(heads[priority].item)
            gone[priority].append(heads[priority].number)

    def _next(self, heads: dict[Priority, tuple[_Entry[T], int]]) -> Priority:
        """Choose among the heads, each with how often it was overtaken; the highest comes first."""
        ranked = list(heads)
        chosen = ranked[0]
        for priority in ranked[1:]:
            entry, overtaken = heads[priority]
            if overtaken >= self.max_overtakes and entry.number < heads[chosen][0].number:
                chosen = priority
        return chosen

    def _below(self, priority: Priority) -> Iterator[Priority]:
        return (each for each in self._queues if each < priority)
