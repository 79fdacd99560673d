"""Who may wait, and what those who wait are told: capacity, bytes, time limits, positions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from ditcast_runtime.accepted import Generation
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import CannotMeetDeadline, QueueFull, TooManyBytes
from ditcast_runtime.estimates import Estimate, Estimates
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

_EXACT_POSITIONS = 64
"""Up to this position each change is told; far behind, only those that matter."""

_NOTICEABLE = 0.25
"""Change of an estimate, as a part of the one told last, from which it is told again."""

_NOTICEABLE_SECONDS = 1.0
"""Changes below this are never told by themselves; nor is anything looked at more often."""

_REFRESHES = 32
"""Estimates told again at one position: a log is bounded, however the estimates swing."""


@dataclass(slots=True)
class _Told:
    """What a waiting one's readers know."""

    position: int
    wait: float | None
    refreshes: int = 0


def raw_bytes(parameters: Parameters) -> int:
    """Give the size of a generation's pixels, 8-bit RGB; latents take less."""
    frames = parameters.num_images * (parameters.num_frames or 1)
    return parameters.width * parameters.height * frames * 3


class Admission:
    """The queue with its bounds. `running` is in each call the one that keeps the ranks now."""

    def __init__(self, config: EngineConfig) -> None:
        self.estimates = Estimates()
        self._max_bytes = config.max_bytes_in_flight
        self._scheduler: Scheduler[Generation] = Scheduler(
            config.queue_capacity, config.max_overtakes
        )
        self._told: dict[Generation, _Told] = {}
        self._unfinished: dict[Generation, int] = {}
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
        encoded = sum(generation.log.memory_bytes for generation in self._unfinished)
        return encoded + sum(self._unfinished.values())

    def admit(self, generation: Generation, running: Generation | None) -> None:
        """Queue it, and tell its readers where it stands.

        Raises:
            QueueFull: no more may wait.
            TooManyBytes: too much is in flight for one of its size.
            CannotMeetDeadline: by what was measured it takes longer than its time limit.
        """
        now = time.monotonic()
        free = self.estimates.until_free(running, now)
        if self._scheduler.full:
            depth, capacity = len(self._scheduler), self._scheduler.capacity
            raise QueueFull(depth, capacity, _retry_after(free))
        size = raw_bytes(generation.parameters) + generation.input_bytes
        self._check_bytes(size, running, free)
        priority = generation.submission.priority
        last = self._scheduler.is_last(priority)
        self._scheduler.add(generation, priority)
        wait = free + (self._queue_seconds if last else self._before(generation))
        whole = self.estimates.whole(generation.parameters)
        try:
            _check_limit(generation.submission.timeout, wait + whole)
        except CannotMeetDeadline:
            self._scheduler.remove(generation)
            raise
        self._unfinished[generation] = size
        self._queue_seconds += whole
        if last:
            self._tell(generation, len(self._scheduler) - 1, wait)
        else:
            self.tell(running)

    def take(self) -> Generation | None:
        """Take out the next to run; the others are told once it is known to run."""
        generation = self._scheduler.take()
        if generation is not None:
            self._told.pop(generation, None)
            self.estimates.taken(time.monotonic())
            self.tell(generation)
        return generation

    def put_back(self, generation: Generation) -> None:
        """Let one that was taken wait again, before all others; it is not told so."""
        self._scheduler.put_back(generation)
        self.tell(None)

    def finish(self, generation: Generation, running: Generation | None) -> bool:
        """Let go of one that has ended; give whether it was still waiting."""
        self._unfinished.pop(generation, None)
        waited = self._scheduler.remove(generation)
        if waited:
            self._told.pop(generation, None)
            self.tell(running)
        return waited

    def clear(self) -> list[Generation]:
        """Take out all that wait, telling nobody: all of them are about to end."""
        waiting = list(self._scheduler)
        for generation in waiting:
            self._scheduler.remove(generation)
        self._told.clear()
        self._queue_seconds = Estimate()
        return waiting

    def look_again(self, running: Generation | None) -> None:
        """Tell those that wait what has changed, unless that was done a moment ago."""
        if time.monotonic() - self._looked_at >= _NOTICEABLE_SECONDS:
            self.tell(running)

    def tell(self, running: Generation | None) -> None:
        """Tell those that wait where they stand, if that is news."""
        self._looked_at = time.monotonic()
        free, queue = self.estimates.until_free(running, self._looked_at), Estimate()
        for position, generation in enumerate(self._scheduler):
            self._tell(generation, position, free + queue)
            queue += self.estimates.whole(generation.parameters)
        self._queue_seconds = queue

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

    def _before(self, generation: Generation) -> Estimate:
        """Foretell how long the ones before a waiting one take."""
        total = Estimate()
        for other in self._scheduler:
            if other is generation:
                break
            total += self.estimates.whole(other.parameters)
        return total

    def _check_bytes(self, size: int, running: Generation | None, free: Estimate) -> None:
        in_flight = self.bytes_in_flight
        if in_flight + size <= self._max_bytes:
            return
        # Places free up one after the other: what is being encoded now is gone first.
        after, wait = in_flight, free
        if running is not None:
            after -= self._unfinished.get(running, 0)
        for generation in self._scheduler:
            if after + size <= self._max_bytes:
                break
            after -= self._unfinished.get(generation, 0)
            wait += self.estimates.whole(generation.parameters)
        raise TooManyBytes(in_flight, self._max_bytes, _retry_after(wait))


def _check_limit(limit: float | None, estimate: Estimate) -> None:
    if limit is not None and estimate.measured > _MARGIN * limit:
        raise CannotMeetDeadline(timedelta(seconds=limit), timedelta(seconds=estimate.measured))


def _retry_after(estimate: Estimate) -> timedelta:
    seconds = estimate.seconds if estimate.known else _UNKNOWN_SECONDS
    return timedelta(seconds=max(_SOON_SECONDS, seconds))


def _has_moved(told: int, position: int) -> bool:
    return abs(told - position) >= max(1, min(told, position) // _EXACT_POSITIONS)


def _is_noticeable(told: float | None, wait: float | None) -> bool:
    if told is None or wait is None:
        return told is not wait
    return abs(wait - told) > max(_NOTICEABLE_SECONDS, _NOTICEABLE * told)
