"""The order of the queue as a state machine, against a model that knows one rule and is slow."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ditcast_runtime.generation import Priority
from ditcast_runtime.scheduler import Scheduler

priorities = st.sampled_from(Priority)
indices = st.integers(0, 10**6)


@dataclass(eq=False)
class Waiting:
    """One that waits, in the model."""

    number: int
    priority: Priority
    overtaken: int = 0

    def overtakes(self, other: Waiting) -> bool:
        """Say whether going now it goes before one that came earlier and counts for less."""
        return self.number > other.number and self.priority > other.priority


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, takes, removes and puts back in any order."""

    @initialize(capacity=st.integers(1, 12), max_overtakes=st.integers(0, 4))
    def make(self, capacity: int, max_overtakes: int) -> None:
        """Begin with an empty queue."""
        self.scheduler: Scheduler[Waiting] = Scheduler(capacity, max_overtakes)
        self.waiting: list[Waiting] = []
        self.taken: list[Waiting] = []
        self.front: list[Waiting] = []
        self.added = 0

    @precondition(lambda self: not self.scheduler.full)
    @rule(priority=priorities)
    def add(self, priority: Priority) -> None:
        """Whoever is said to be last stands last."""
        self.added += 1
        item = Waiting(self.added, priority)
        last = self.scheduler.is_last(priority)
        self.scheduler.add(item, priority)
        self.waiting.append(item)
        assert not last or self.scheduler.positions()[-1] is item

    @rule()
    def take(self) -> None:
        """What is put back goes first; then the highest that would overtake nobody too often."""
        item = self.scheduler.take()
        if item is None:
            assert not self.waiting
            assert not self.front
            return
        self.taken.append(item)
        if self.front:
            assert item is self.front.pop(0)
            return
        tired = [each for each in self.waiting if each.overtaken >= self.scheduler.max_overtakes]
        allowed = [each for each in self.waiting if not any(map(each.overtakes, tired))]
        assert item is min(allowed, key=lambda each: (-each.priority, each.number))
        self.waiting.remove(item)
        for other in self.waiting:
            other.overtaken += item.overtakes(other)

    @precondition(lambda self: self.taken)
    @rule(index=indices)
    def put_back(self, index: int) -> None:
        """One that was taken may come back, before all others."""
        item = self.taken.pop(index % len(self.taken))
        self.scheduler.put_back(item)
        self.front.insert(0, item)

    @precondition(lambda self: self.waiting or self.front)
    @rule(index=indices)
    def remove(self, index: int) -> None:
        """Any can be removed, once."""
        everything = self.front + self.waiting
        item = everything[index % len(everything)]
        assert self.scheduler.remove(item)
        assert not self.scheduler.remove(item)
        (self.front if item in self.front else self.waiting).remove(item)

    @invariant()
    def nobody_starves(self) -> None:
        """Nobody is overtaken more often than was configured."""
        assert all(each.overtaken <= self.scheduler.max_overtakes for each in self.waiting)

    @invariant()
    def capacity_holds(self) -> None:
        """Only what is put back, and so was in before, can go over the capacity."""
        assert len(self.scheduler) == len(self.waiting) + len(self.front)
        assert len(self.waiting) <= self.scheduler.capacity
        assert self.scheduler.full == (len(self.scheduler) >= self.scheduler.capacity)

    @invariant()
    def positions_come_true(self) -> None:
        """The positions are the order in which all are taken if nothing else happens."""
        foretold = self.scheduler.positions()
        rehearsal: Any = copy.copy(self.scheduler)
        rehearsal._front = self.scheduler._front.copy()
        rehearsal._queues = {
            priority: copy.deepcopy(queue, {id(each): each for each in self.waiting})
            for priority, queue in self.scheduler._queues.items()
        }
        taken = [rehearsal.take() for _ in foretold]
        assert list(map(id, taken)) == list(map(id, foretold))
        assert rehearsal.take() is None


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_a_steady_stream_of_high_ones_lets_a_low_one_through() -> None:
    """A LOW one goes after exactly as many later HIGH ones as are configured."""
    scheduler: Scheduler[str] = Scheduler(capacity=10, max_overtakes=3)
    scheduler.add("low", Priority.LOW)
    order = []
    for number in range(6):
        scheduler.add(f"high {number}", Priority.HIGH)
        order.append(scheduler.take())
    assert order[:5] == ["high 0", "high 1", "high 2", "low", "high 3"]


def test_earlier_high_ones_do_not_count_as_overtaking() -> None:
    """Those that were there before may all go first."""
    scheduler: Scheduler[str] = Scheduler(capacity=10, max_overtakes=1)
    for number in range(4):
        scheduler.add(f"high {number}", Priority.HIGH)
    scheduler.add("normal", Priority.NORMAL)
    scheduler.add("late", Priority.HIGH)
    assert scheduler.positions()[3:] == ["high 3", "late", "normal"]
