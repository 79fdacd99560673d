"""The order of the queue as a state machine, against a model that knows few rules and is slow."""

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
clients = st.sampled_from(["ann", "bob", "cid"])
indices = st.integers(0, 10**6)


@dataclass(eq=False)
class Waiting:
    """One that waits, in the model."""

    number: int
    priority: Priority
    client: str

    @property
    def line(self) -> tuple[Priority, str]:
        """Whose turn it waits for."""
        return (self.priority, self.client)

    def overtakes(self, other: Waiting) -> bool:
        """Say whether going now it goes before one that came earlier and counts for less."""
        return self.number > other.number and self.priority > other.priority


def peers_before(item: Waiting, order: list[Waiting]) -> list[Waiting]:
    """Give those of its priority that go before it."""
    return [each for each in order[: order.index(item)] if each.priority is item.priority]


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, takes, removes and puts back in any order."""

    @initialize(capacity=st.integers(1, 12), max_overtakes=st.integers(0, 4))
    def make(self, capacity: int, max_overtakes: int) -> None:
        """Begin with an empty queue."""
        self.scheduler: Scheduler[Waiting] = Scheduler(capacity, max_overtakes)
        self.waiting: list[Waiting] = []
        self.taken: list[Waiting] = []
        self.front: list[Waiting] = []
        self.moves = 0
        self.waits_since: dict[tuple[Priority, str], int] = {}
        """The move at which a line that is not empty began to wait for its next turn."""
        self.overtaken = dict.fromkeys(Priority, 0)
        self.turns_since: dict[tuple[Waiting, str], int] = {}
        """Turns that other clients had since one became the next of its own."""

    def next_of(self, priority: Priority) -> Waiting | None:
        """Whoever waits for a turn the longest has the next one, with the first that it sent."""
        of_priority = [each for each in self.waiting if each.priority is priority]
        return min(
            of_priority,
            key=lambda each: (self.waits_since[each.line], each.number),
            default=None,
        )

    @precondition(lambda self: not self.scheduler.full)
    @rule(priority=priorities, client=clients, times=st.integers(1, 3))
    def add(self, priority: Priority, client: str, times: int) -> None:
        """Whoever is said to be last stands last."""
        for _ in range(min(times, self.scheduler.capacity - len(self.scheduler))):
            self.moves += 1
            item = Waiting(self.moves, priority, client)
            if not any(each.priority is priority for each in self.waiting):
                self.overtaken[priority] = 0
            if not any(each.line == item.line for each in self.waiting):
                self.waits_since[item.line] = self.moves
            last = self.scheduler.is_last(priority, client)
            self.scheduler.add(item, priority, client)
            self.waiting.append(item)
            stands_last = list(self.scheduler)[-1] is item
            assert stands_last or not last
            if all(each.priority is priority for each in self.waiting):
                assert last == stands_last

    @rule()
    def take(self) -> None:
        """What is put back goes first; then the highest whose turn it is, the tired apart."""
        item = self.scheduler.take()
        if item is None:
            assert not self.waiting
            assert not self.front
            return
        self.taken.append(item)
        if self.front:
            assert item is self.front.pop(0)
            return
        self.moves += 1
        heads = [head for priority in Priority if (head := self.next_of(priority))]
        limit = self.scheduler.max_overtakes
        tired = [head for head in heads if self.overtaken[head.priority] >= limit]
        allowed = [head for head in heads if not any(map(head.overtakes, tired))]
        assert item is max(allowed, key=lambda head: head.priority)
        for head in heads:
            self.overtaken[head.priority] += item.overtakes(head)
        self.overtaken[item.priority] = 0
        self.waiting.remove(item)
        self.waits_since[item.line] = self.moves
        self._count_turns(item)

    def _count_turns(self, item: Waiting) -> None:
        for other in self.waiting:
            if other.priority is item.priority and other.client != item.client:
                key = (other, item.client)
                self.turns_since[key] = self.turns_since.get(key, 0) + 1
            elif other.line == item.line:
                # Now one nearer to being the next of its client: what went before counts anew.
                for client in ("ann", "bob", "cid"):
                    self.turns_since.pop((other, client), None)

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
        """Any can be removed, once, and its client's others come nearer."""
        everything = self.front + self.waiting
        item = everything[index % len(everything)]
        assert self.scheduler.remove(item)
        assert not self.scheduler.remove(item)
        (self.front if item in self.front else self.waiting).remove(item)

    @rule(odd=st.booleans(), count=st.integers(0, 3))
    def take_alike(self, odd: bool, count: int) -> None:  # noqa: FBT001 (drawn)
        """Those of a kind go along in their order, and nobody is put back in their priority.

        Others may: the next of a rider's client has its turn, and is passed by whoever is of a
        higher priority and came before that one, though after those who come then.
        """
        before = list(self.scheduler)
        expected = [each for each in before if each.number % 2 == odd][:count]
        assert self.scheduler.take_alike(lambda each: each.number % 2 == odd, count) == expected
        for item in expected:
            (self.front if item in self.front else self.waiting).remove(item)
        self.taken += expected
        after = list(self.scheduler)
        for item in after:
            assert len(peers_before(item, after)) <= len(peers_before(item, before))

    @invariant()
    def clients_take_turns(self) -> None:
        """Between two turns of a client that waits, no other has more than one of that priority."""
        assert max(self.turns_since.values(), default=0) <= 1

    @invariant()
    def no_priority_starves(self) -> None:
        """The next of a priority is never overtaken more often than was configured."""
        limit = self.scheduler.max_overtakes
        heads = [head for priority in Priority if (head := self.next_of(priority))]
        assert all(self.overtaken[head.priority] <= limit for head in heads)

    @invariant()
    def capacity_holds(self) -> None:
        """Only what is put back, and so was in before, can go over the capacity."""
        assert len(self.scheduler) == len(self.waiting) + len(self.front)
        assert len(self.waiting) <= self.scheduler.capacity
        assert self.scheduler.full == (len(self.scheduler) >= self.scheduler.capacity)
        for client in ("ann", "bob", "cid"):
            waiting = sum(each.client == client for each in self.waiting)
            assert self.scheduler.waiting_of(client) == waiting

    @invariant()
    def positions_come_true(self) -> None:
        """The positions are the order in which all are taken if nothing else happens."""
        foretold = list(self.scheduler)
        everything = {id(each): each for each in self.waiting + self.front}
        rehearsal: Any = copy.deepcopy(self.scheduler, everything)
        taken = [rehearsal.take() for _ in foretold]
        assert list(map(id, taken)) == list(map(id, foretold))
        assert rehearsal.take() is None
        assert list(self.scheduler) == foretold


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def order_of(scheduler: Scheduler[str]) -> list[str]:
    """Take all out."""
    return [item for _ in range(len(scheduler)) if (item := scheduler.take())]


def test_a_hundred_of_one_client_do_not_delay_the_first_of_another() -> None:
    """It goes after one of theirs, and from then on they take turns."""
    scheduler: Scheduler[str] = Scheduler(capacity=200, max_overtakes=3)
    for number in range(100):
        scheduler.add(f"many {number}", Priority.NORMAL, "many")
    assert scheduler.take() == "many 0"
    scheduler.add("few 0", Priority.NORMAL, "few")
    scheduler.add("few 1", Priority.NORMAL, "few")
    order = ["many 1", "few 0", "many 2", "few 1", "many 3"]
    assert list(scheduler)[:5] == order_of(scheduler)[:5] == order


def test_whoever_comes_back_waits_for_those_who_wait() -> None:
    """To send one after the other gives no more turns than to send all at once."""
    scheduler: Scheduler[str] = Scheduler(capacity=200, max_overtakes=3)
    for client in ("ann", "bob", "cid"):
        scheduler.add(f"{client} 0", Priority.NORMAL, client)
        scheduler.add(f"{client} 1", Priority.NORMAL, client)
    scheduler.add("dan 0", Priority.NORMAL, "dan")
    for expected in ("ann 0", "bob 0", "cid 0", "dan 0"):
        assert scheduler.take() == expected
    scheduler.add("dan 1", Priority.NORMAL, "dan")
    assert order_of(scheduler) == ["ann 1", "bob 1", "cid 1", "dan 1"]


def test_a_steady_stream_of_high_ones_lets_a_low_one_through() -> None:
    """A LOW one goes after exactly as many later HIGH ones as are configured."""
    scheduler: Scheduler[str] = Scheduler(capacity=10, max_overtakes=3)
    scheduler.add("low", Priority.LOW, "")
    order = []
    for number in range(6):
        scheduler.add(f"high {number}", Priority.HIGH, "")
        order.append(scheduler.take())
    assert order[:5] == ["high 0", "high 1", "high 2", "low", "high 3"]


def test_many_low_ones_of_one_client_hold_no_high_one_up() -> None:
    """However many were overtaken, one LOW goes for as many later HIGH ones as are configured."""
    scheduler: Scheduler[str] = Scheduler(capacity=200, max_overtakes=3)
    for number in range(100):
        scheduler.add(f"low {number}", Priority.LOW, "many")
    order = []
    for number in range(12):
        scheduler.add(f"high {number}", Priority.HIGH, "few")
        order.append(scheduler.take())
    assert [each for each in order if each and each.startswith("low")] == [
        "low 0",
        "low 1",
        "low 2",
    ]
    assert order[3] == "low 0"


def test_earlier_high_ones_do_not_count_as_overtaking() -> None:
    """Those that were there before may all go first."""
    scheduler: Scheduler[str] = Scheduler(capacity=10, max_overtakes=1)
    for number in range(4):
        scheduler.add(f"high {number}", Priority.HIGH, "")
    scheduler.add("normal", Priority.NORMAL, "")
    scheduler.add("late", Priority.HIGH, "")
    assert list(scheduler)[3:] == ["high 3", "late", "normal"]


def test_a_tired_low_one_holds_up_no_earlier_normal_one() -> None:
    """It goes before all later ones, and no earlier one of higher priority overtakes it."""
    scheduler: Scheduler[str] = Scheduler(capacity=10, max_overtakes=1)
    scheduler.add("normal 0", Priority.NORMAL, "")
    scheduler.add("normal 1", Priority.NORMAL, "")
    scheduler.add("low", Priority.LOW, "")
    scheduler.add("high 0", Priority.HIGH, "")
    scheduler.add("high 1", Priority.HIGH, "")
    assert order_of(scheduler) == ["high 0", "normal 0", "normal 1", "low", "high 1"]
