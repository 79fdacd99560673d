"""Who may wait, and what those who wait are told: capacity, bytes, time limits, positions."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from ditcast_runtime.accepted import Generation, Submission
from ditcast_runtime.batching import batch_key
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import CannotMeetDeadline, ClientLimitReached, QueueFull, TooManyBytes
from ditcast_runtime.estimates import Estimate, Estimates, Outlook
from ditcast_runtime.events import Queued
from ditcast_runtime.generation import Parameters
from ditcast_runtime.scheduler import Scheduler

_UNKNOWN_SECONDS = 5.0
"""What a caller is asked to wait before anything was measured."""

_SOON_SECONDS = 0.1
"""The least that a caller is asked to wait."""

_MARGIN = 1.5
"""A time limit is refused only if what was measured says that it takes so many times as long: 9 of
10 estimates are within 50 % of what comes."""

_NEXT = 1
"""So many learn at once that one was taken; the others when all are told again."""

_TOLD_A_SECOND = 8
"""All are told again so seldom that this is what they hear together. A queue of twice the length
takes twice as long to go by: if each heard of each, it would cost four times as much to tell."""

_ROUND_SECONDS = 0.25
"""The least until all are told again, however few they are: nobody reads places faster."""

_EXACT_POSITIONS = 16
"""Up to this position each change is told; far behind, only those that matter."""

_NOTICEABLE = 0.25
"""Change of an estimate, as a part of the one told last, from which it is told again."""

_NOTICEABLE_SECONDS = 1.0
"""Changes below this are never told by themselves."""

_REFRESHES = 32
"""Estimates told again at one position: a log is bounded, however the estimates swing."""


@dataclass(slots=True)
class _Told:
    """What a waiting one's readers know."""

    position: int
    wait: float | None
    refreshes: int = 0


@dataclass(frozen=True, slots=True)
class _Foretold:
    """When a generation that is not finished is likely to begin and to have ended."""

    generation: Generation
    waits: bool
    begins: Estimate
    ends: Estimate


_Release = Callable[[_Foretold], tuple[int, Estimate]]
"""Gives how much of something one lets go of, and when."""


def raw_bytes(parameters: Parameters) -> int:
    """Give the size of a generation's pixels, 8-bit RGB; latents take less."""
    frames = parameters.num_images * (parameters.num_frames or 1)
    return parameters.width * parameters.height * frames * 3


class Admission:
    """The queue with its bounds; `running` are those that keep ranks now, in no order."""

    def __init__(self, config: EngineConfig) -> None:
        self.estimates = Estimates()
        self._max_bytes = config.max_bytes_in_flight
        self._batches = config.max_batch_size > 1
        self._scheduler: Scheduler[Generation] = Scheduler(
            config.queue_capacity, config.max_overtakes
        )
        self._told: dict[Generation, _Told] = {}
        self._unfinished: dict[Generation, int] = {}
        self.running: set[Generation] = set()
        self._queue_seconds = Estimate()
        self._looked_at = 0.0

    def __len__(self) -> int:
        """Give how many wait."""
        return len(self._scheduler)

    def __iter__(self) -> Iterator[Generation]:
        """Give those that wait, in the order in which they would run."""
        return iter(self._scheduler)

    @property
    def bytes_in_flight(self) -> int:
        """Pixels, in and out, of all accepted and not finished, and what is encoded already."""
        return sum(map(self._bytes_of, self._unfinished))

    def admit(self, generation: Generation) -> None:
        """Queue it, and tell its readers where it stands.

        Raises:
            ClientLimitReached: its client may not have more at once.
            QueueFull: no more may wait.
            TooManyBytes: too much is in flight for one of its size.
            CannotMeetDeadline: by what was measured it takes longer than its time limit.
        """
        outlook = self.estimates.outlook(self.running, time.monotonic())
        size = raw_bytes(generation.parameters) + generation.input_bytes
        self._check_client(generation.submission, size, outlook)
        if self._scheduler.full:
            depth, capacity = len(self._scheduler), self._scheduler.capacity
            raise QueueFull(depth, capacity, _retry_after(outlook.next))
        self._check_bytes(size, outlook)
        priority, client = generation.submission.priority, generation.submission.client
        last = self._scheduler.is_last(priority, client)
        self._scheduler.add(generation, priority, client)
        wait = self._wait(generation, outlook, last=last)
        whole = self.estimates.whole(generation.parameters)
        try:
            # With batches what waits before it may run beside it: only its own time is measured.
            _check_limit(generation.submission.timeout, whole if self._batches else wait + whole)
        except CannotMeetDeadline:
            self._scheduler.remove(generation)
            raise
        self._unfinished[generation] = size
        self._queue_seconds += whole
        if last:
            self._tell(generation, len(self._scheduler) - 1, wait)
        else:
            self.tell()

    def admit_next(self, generation: Generation) -> None:
        """Queue one before all others, whatever the bounds: it is a part of one that was admitted.

        Its bytes count, as those of any.
        """
        self._unfinished[generation] = raw_bytes(generation.parameters)
        self._scheduler.put_back(generation)
        self.tell()

    def take(self) -> Generation | None:
        """Take out the next to run; the others are told once it is known to run."""
        generation = self._scheduler.take()
        if generation is not None:
            self._told.pop(generation, None)
            self.running.add(generation)
            self.estimates.taken(generation, time.monotonic())
            self._tell_taken([generation])
        return generation

    def alike(self, size: int) -> int:
        """Count what waits of one kind with the next, itself too, up to `size`; 0: none waits."""
        waiting = iter(self._scheduler)
        first = next(waiting, None)
        if first is None:
            return 0
        key = batch_key(first)
        alike = (each for each in waiting if key is not None and batch_key(each) == key)
        return 1 + sum(1 for _ in itertools.islice(alike, size - 1))

    def take_alike(self, first: Generation, size: int, idle: int) -> list[Generation]:
        """Take out those that can share a call with one that was taken, up to `size` with it.

        Where several groups are `idle`, only a share, so that none stays so.
        """
        key = batch_key(first)
        if key is None or size == 1:
            return [first]
        waiting = sum(1 for each in self._scheduler if batch_key(each) == key)
        size = min(size, math.ceil((1 + waiting) / idle))
        others = self._scheduler.take_alike(lambda each: batch_key(each) == key, size - 1)
        batch, now = [first, *others], time.monotonic()
        for index, generation in enumerate(batch):
            generation.batch_size, generation.batch_index = len(batch), index
            self._told.pop(generation, None)
            self.running.add(generation)
            self.estimates.taken(generation, now)
        if others:
            self._tell_taken(others)
        return batch

    def release(self, generation: Generation) -> None:
        """Count one that was taken as running no more."""
        self.running.discard(generation)
        generation.batch_size, generation.batch_index = 1, 0

    def put_back(self, generation: Generation) -> None:
        """Let one that was taken wait again, before all others; it is not told so."""
        self.release(generation)
        self._scheduler.put_back(generation)
        self.tell()

    def finish(self, generation: Generation) -> bool:
        """Let go of one that has ended; give whether it was still waiting."""
        self._unfinished.pop(generation, None)
        waited = self._scheduler.remove(generation)
        if waited:
            self._told.pop(generation, None)
            self.tell()
        return waited

    def clear(self) -> list[Generation]:
        """Take out all that wait, telling nobody: all of them are about to end."""
        waiting = list(self._scheduler)
        for generation in waiting:
            self._scheduler.remove(generation)
        self._told.clear()
        self._queue_seconds = Estimate()
        return waiting

    def look_again(self) -> None:
        """Tell those that wait what has changed, unless that was done a moment ago."""
        pause = max(_ROUND_SECONDS, len(self._scheduler) / _TOLD_A_SECOND)
        if time.monotonic() - self._looked_at >= pause:
            self.tell()

    def tell(self) -> None:
        """Tell those that wait where they stand, if that is news."""
        self._looked_at = time.monotonic()
        self._queue_seconds = self._tell_first(len(self._scheduler))

    def _tell_taken(self, taken: Iterable[Generation]) -> None:
        """Tell those for whom it matters now; the others hear of it by a report of what runs."""
        for generation in taken:
            whole = self.estimates.whole(generation.parameters)
            self._queue_seconds = self._queue_seconds.without(whole)
        self._tell_first(_NEXT)
        self.look_again()

    def _tell_first(self, count: int) -> Estimate:
        """Tell so many; give how long they keep ranks."""
        outlook, together = self.estimates.outlook(self.running, time.monotonic()), Estimate()
        for position, generation in enumerate(itertools.islice(self._scheduler, count)):
            whole = self.estimates.whole(generation.parameters)
            self._tell(generation, position, outlook.take(whole))
            together += whole
        return together

    def _tell(self, generation: Generation, position: int, wait: Estimate) -> None:
        if generation not in self._unfinished or generation.started_at:
            return  # Refused just now, or put back: its readers know that it has started.
        seconds = wait.seconds if wait.known else None
        told = self._told.get(generation)
        if told is None or _has_moved(told.position, position):
            self._told[generation] = _Told(position, seconds)
        elif told.refreshes < _REFRESHES and _is_noticeable(told.wait, seconds):
            told.position, told.wait = position, seconds
            told.refreshes += 1
        else:
            return
        generation.log.append(Queued(position=position, estimated_wait=seconds))

    def _wait(self, generation: Generation, outlook: Outlook, *, last: bool) -> Estimate:
        """Foretell when one that was added begins; `last` if that is after all others."""
        groups = self.estimates.groups
        if last and (groups == 1 or len(self._scheduler) > _EXACT_POSITIONS):
            # Without looking at all of them: of many, each group makes its share.
            return outlook.next + self._queue_seconds.shared(groups)
        ahead = outlook.copy()
        for other in self._scheduler:
            if other is generation:
                break
            ahead.take(self.estimates.whole(other.parameters))
        return ahead.next

    def _check_client(self, submission: Submission, size: int, outlook: Outlook) -> None:
        limits, client = submission.limits, submission.client
        mine = [each for each in self._unfinished if each.submission.client == client]
        in_flight, waiting = sum(map(self._bytes_of, mine)), self._scheduler.waiting_of(client)
        generations, queued = limits.max_generations_per_client, limits.max_queued_per_client
        table: tuple[tuple[str, int | None, int, int, _Release], ...] = (
            ("max_generations_per_client", generations, len(mine), 1, _when_it_ends),
            ("max_queued_per_client", queued, waiting, 1, _when_it_begins),
            (
                "max_bytes_per_client",
                limits.max_bytes_per_client,
                in_flight,
                size,
                self._bytes_released,
            ),
        )
        for limit, bound, held, asked, release in table:
            if not bound or held + asked <= bound:
                continue
            foretold = self._foretold(outlook)
            own = (
                release(each) for each in foretold if each.generation.submission.client == client
            )
            after = None if asked > bound else _when(held + asked - bound, own)
            raise ClientLimitReached(
                client, limit, held=held, bound=bound, asked=asked, retry_after=after
            )

    def _check_bytes(self, size: int, outlook: Outlook) -> None:
        in_flight = self.bytes_in_flight
        excess = in_flight + size - self._max_bytes
        if excess > 0:
            after = _when(excess, map(self._bytes_released, self._foretold(outlook)))
            raise TooManyBytes(in_flight, self._max_bytes, after)

    def _bytes_of(self, generation: Generation) -> int:
        """Give its pixels, in and out, and what is encoded already."""
        return self._unfinished[generation] + generation.log.memory_bytes

    def _bytes_released(self, foretold: _Foretold) -> tuple[int, Estimate]:
        return (self._bytes_of(foretold.generation), foretold.ends)

    def _foretold(self, outlook: Outlook) -> Iterator[_Foretold]:
        """Foretell for all that is not finished when it begins and ends, the first to end first."""
        waiting, ahead = list(self._scheduler), outlook.copy()
        for generation in self._unfinished.keys() - set(waiting):
            yield _Foretold(generation, waits=False, begins=Estimate(), ends=ahead.next)
        for generation in waiting:
            whole = self.estimates.whole(generation.parameters)
            begins = ahead.take(whole)
            yield _Foretold(generation, waits=True, begins=begins, ends=begins + whole)


def _check_limit(limit: float | None, estimate: Estimate) -> None:
    if limit is not None and estimate.measured > _MARGIN * limit:
        raise CannotMeetDeadline(timedelta(seconds=limit), timedelta(seconds=estimate.measured))


def _when_it_ends(foretold: _Foretold) -> tuple[int, Estimate]:
    return (1, foretold.ends)


def _when_it_begins(foretold: _Foretold) -> tuple[int, Estimate]:
    return (int(foretold.waits), foretold.begins)


def _when(excess: int, releases: Iterable[tuple[int, Estimate]]) -> timedelta:
    """Say when so much is likely to have been let go of."""
    wait = Estimate()
    for amount, wait in releases:  # noqa: B007 (used after)
        excess -= amount
        if excess <= 0:
            break
    return _retry_after(wait)


def _retry_after(estimate: Estimate) -> timedelta:
    seconds = estimate.seconds if estimate.known else _UNKNOWN_SECONDS
    return timedelta(seconds=max(_SOON_SECONDS, seconds))


def _has_moved(told: int, position: int) -> bool:
    return abs(told - position) >= max(1, min(told, position) // _EXACT_POSITIONS)


def _is_noticeable(told: float | None, wait: float | None) -> bool:
    if told is None or wait is None:
        return told is not wait
    return abs(wait - told) > max(_NOTICEABLE_SECONDS, _NOTICEABLE * told)
