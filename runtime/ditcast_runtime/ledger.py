"""Every accepted generation, from admission until it is forgotten. Knows nothing of ranks."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from ditcast_runtime.accepted import Generation, Submission
from ditcast_runtime.admission import Admission
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import (
    DeadlineExceeded,
    GenerationCancelled,
    NotServing,
    RanksLost,
    RequestIdReused,
    RuntimeFailure,
    UnknownGeneration,
)
from ditcast_runtime.estimates import Estimates
from ditcast_runtime.events import Restarted
from ditcast_runtime.generation import State
from ditcast_runtime.group import RunReport
from ditcast_runtime.observer import UNOBSERVED, Observer
from ditcast_runtime.retention import Retention
from ditcast_runtime.summary import Summary, summarize
from ditcast_runtime.timings import log_fields

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Vitals:
    """How much there is of what comes and goes; all that is known is gone through for it."""

    running: int
    """Generations that have ranks, which each keeps until all of them are free again."""
    bytes_in_flight: int
    """Of pixels, raw and encoded, in and out, of all accepted and not finished."""
    readers: int
    """Streams that follow a generation."""


class Ledger:
    """Admits, ends, keeps and forgets generations.

    `work` is set when there may be something to run; `on_ended_running` is called when one that
    runs has ended for its readers, so that its ranks can be told to leave it.
    `observer` only watches.
    """

    def __init__(
        self,
        config: EngineConfig,
        folder: Path,
        on_ended_running: Callable[[Generation], None],
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._config = config
        self._observer = observer
        self._on_ended_running = on_ended_running
        self._admission = Admission(config)
        self._known: OrderedDict[tuple[str, str], Generation] = OrderedDict()
        self._serials = itertools.count(1)
        self._retention = Retention(config, folder, self._forget)
        self.work = asyncio.Event()

    def __len__(self) -> int:
        """Give how many wait."""
        return len(self._admission)

    @property
    def occupancy(self) -> int:
        """Give how many wait or have ranks; each RPC's end asks for it, so nothing is searched."""
        return len(self._admission) + len(self.running)

    @property
    def vitals(self) -> Vitals:
        """How much there is of everything now."""
        return Vitals(
            running=len(self.running),
            bytes_in_flight=self._admission.bytes_in_flight,
            readers=sum(generation.readers for generation in self._known.values()),
        )

    @property
    def running(self) -> Collection[Generation]:
        """Those that were taken, and neither released nor put back."""
        return self._admission.running

    @property
    def estimates(self) -> Estimates:
        """What is known of how long generations take."""
        return self._admission.estimates

    def find(self, request_id: str, identity: str) -> Generation:
        """Give a caller's generation; UnknownGeneration if there is none of this id of theirs."""
        generation = self._known.get((identity, request_id))
        if generation is None:
            raise UnknownGeneration(request_id)
        return generation

    def same(self, request_id: str, identity: str, digest: bytes) -> Generation | None:
        """Give the generation of this id, if any; RequestIdReused if its content is another."""
        known = self._known.get((identity, request_id))
        if known is not None and known.submission.digest != digest:
            raise RequestIdReused(request_id)
        return known

    def summaries(self, identity: str | None) -> list[Summary]:
        """List a caller's generations, or with None everybody's, the newest first."""
        positions = {waiting: position for position, waiting in enumerate(self._admission)}
        return [
            summarize(known, positions.get(known), self._config.retention)
            for known in reversed(self._known.values())
            if identity in (None, known.submission.identity)
        ]

    def admit(self, submission: Submission) -> Generation:
        """Queue a new generation.

        Raises:
            QueueFull: no more may wait.
            TooManyBytes: too much is in flight for one of its size.
            CannotMeetDeadline: by what was measured it takes longer than its time limit.
        """
        generation = Generation(
            submission, self.cancel, self._config.heartbeat_interval, next(self._serials)
        )
        self._admission.admit(generation)
        if submission.timeout is not None:
            loop = asyncio.get_running_loop()
            generation.deadline = loop.call_later(submission.timeout, self._expire, generation)
        self._known[_key(submission)] = generation
        self._observer.accepted(generation)
        self.work.set()
        return generation

    def admit_next(self, submission: Submission) -> Generation:
        """Let a part of one that was admitted run next; nobody finds or lists it by its id."""
        generation = Generation(
            submission, self.cancel, self._config.heartbeat_interval, next(self._serials)
        )
        self._admission.admit_next(generation)
        self._observer.accepted(generation)
        self.work.set()
        return generation

    @property
    def restarting(self) -> Iterator[Generation]:
        """Those that had begun, and wait to begin again."""
        return (waiting for waiting in self._admission if waiting.state is State.RESTARTING)

    def take(self) -> Generation | None:
        """Take out the next to run, which is among `running` until it is released."""
        generation = self._admission.take()
        if generation is not None:
            self._observer.taken(generation)
        return generation

    @property
    def next(self) -> Generation | None:
        """The next to run, which still waits."""
        return next(iter(self._admission), None)

    def alike(self, size: int) -> int:
        """Count what waits and could run in one call with the next, itself too, up to `size`."""
        return self._admission.alike(size)

    def take_alike(self, first: Generation, size: int, idle: int) -> list[Generation]:
        """Give one that was taken with those that share its call, which are taken with it.

        `idle` is how many groups could take something now, from 1.
        """
        batch = self._admission.take_alike(first, size, idle)
        for other in batch[1:]:
            self._observer.taken(other)
        return batch

    def release(self, generation: Generation) -> None:
        """Count one that was taken as running no more: its ranks are free, or gone."""
        self._admission.release(generation)

    def begin_again(self, generation: Generation, epoch: int, reason: str) -> None:
        """Let one that was taken wait again, before all others, to run anew from its first step."""
        # Whatever it was must not happen to others for this one, nor to this one again for theirs.
        generation.alone = True
        generation.attempt += 1
        generation.steps.clear()
        generation.state = State.RESTARTING
        generation.log.append(
            Restarted(
                attempt=generation.attempt,
                max_attempts=self._config.max_attempts + generation.spared,
                epoch=epoch,
                reason=reason,
            )
        )
        self._admission.put_back(generation)
        self._observer.begins_again(generation)
        self.work.set()

    def observe(self, generation: Generation, report: RunReport) -> None:
        """Learn how long things take from a report about one that runs, and pass it on."""
        self.estimates.observe(generation, report, time.monotonic())
        self._observer.reported(generation, report)
        self._admission.look_again()

    def cancel(self, generation: Generation) -> None:
        """End it because somebody asked for it or nobody reads it any more."""
        self.end(generation, GenerationCancelled(generation.steps_done))

    def succeed(self, generation: Generation) -> None:
        """Close the log of a generation with its last event; keep it for other readers."""
        if generation.completed is not None:
            generation.log.append(generation.completed)
        if generation.log.end():
            generation.state = State.SUCCEEDED
            self._admission.finish(generation)
            self._retire(generation, None)
            self._keep(generation)

    def end(self, generation: Generation, failure: RuntimeFailure) -> None:
        """End it without a result; nothing if it has ended: the first into the log wins."""
        if not generation.log.end(failure):
            return
        stopped = isinstance(failure, (GenerationCancelled, DeadlineExceeded))
        generation.state = State.CANCELLED if stopped else State.FAILED
        self._admission.finish(generation)
        if generation in self.running:
            self._on_ended_running(generation)
        self._retire(generation, failure)
        if isinstance(failure, (RanksLost, NotServing)):
            # Ended UNAVAILABLE: the same id may be sent again, and renders anew.
            self._forget(generation)
        else:
            self._keep(generation)

    def end_all(self, failure: RuntimeFailure) -> None:
        """End everything that waits or runs."""
        for generation in [*self._admission.clear(), *self.running]:
            self.end(generation, failure)

    def _expire(self, generation: Generation) -> None:
        self.end(generation, DeadlineExceeded(generation.steps_done))

    def _retire(self, generation: Generation, failure: RuntimeFailure | None) -> None:
        generation.retire()
        generation.submission.free_pictures()
        self._observer.ended(generation, failure)
        log.info(
            "generation ended",
            request_id=generation.request_id,
            state=str(generation.state),
            steps=generation.steps_done,
            seconds=round(time.monotonic() - generation.accepted_at, 3),
            **(log_fields(generation.completed) if generation.completed else {}),
        )

    def _keep(self, generation: Generation) -> None:
        if generation.submission.keeps_result:
            self._retention.keep(generation)
        else:
            self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        key = _key(generation.submission)
        if self._known.get(key) is generation:
            del self._known[key]


def _key(submission: Submission) -> tuple[str, str]:
    return (submission.identity, submission.request_id)
