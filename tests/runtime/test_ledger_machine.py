"""The life of accepted generations as a state machine: the ledger with its queue, and no ranks."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ditcast_runtime.accepted import Generation, Submission
from ditcast_runtime.admission import _NEXT, raw_bytes
from ditcast_runtime.config import ClientLimits, EngineConfig
from ditcast_runtime.errors import (
    CannotMeetDeadline,
    ClientLimitReached,
    DeadlineExceeded,
    GenerationCancelled,
    NanOutput,
    NotServing,
    QueueFull,
    RequestIdReused,
    RuntimeFailure,
    TooManyBytes,
)
from ditcast_runtime.events import Event, OutputChunk, Queued, RankMemory, Started
from ditcast_runtime.generation import OutputOptions, Parameters, Priority, State
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.messages import Denoising, Ended, Outcome, Step
from ditcast_runtime.settings import CacheSettings

MAX_BYTES = 4 * 64 * 64 * 3
RUNNING = 3
"""How many are let run at a time."""
STEPS = 2
STEP_SECONDS = 100.0
"""As it is reported; nothing here waits for it."""

priorities = st.sampled_from(Priority)
sides = st.sampled_from([32, 64])
limits = st.none() | st.sampled_from([100.0, 500.0, 10_000.0])
clients = st.sampled_from(["ann", "bob"])
indices = st.integers(0, 10**6)


def parameters(side: int) -> Parameters:
    """Settle a generation of one square picture."""
    return Parameters(
        prompt="a circle",
        negative_prompt=None,
        width=side,
        height=side,
        num_inference_steps=STEPS,
        guidance_scale=None,
        true_cfg_scale=None,
        seed=1,
        num_images=1,
        sigmas=(),
        pipeline_kwargs={},
        output=OutputOptions(),
        cache=CacheSettings(),
    )


@dataclass(eq=False)
class Known:
    """What the model knows of one accepted generation."""

    generation: Generation
    failure: type[RuntimeFailure] | None = None
    ended: bool = False
    events_at_end: int = 0


async def read(generation: Generation) -> tuple[list[Event], RuntimeFailure | None]:
    """Give all events of one that has ended, and what it ended with."""
    events: list[Event] = []
    try:
        following: AsyncIterator[Event | None] = generation.follow()
        async for event in following:
            assert event is not None
            events.append(event)
    except RuntimeFailure as failure:
        return events, failure
    return events, None


class LedgerMachine(RuleBasedStateMachine):
    """Everything that can happen to accepted generations, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.known: dict[str, Known] = {}
        self.encoding: list[Known] = []
        self.told_to_leave: Counter[str] = Counter()
        self.serial = 0

    @initialize(
        capacity=st.integers(1, 5),
        max_overtakes=st.integers(0, 2),
        client_limits=st.builds(
            ClientLimits,
            max_generations_per_client=st.integers(0, 4),
            max_queued_per_client=st.integers(0, 3),
            max_bytes_per_client=st.sampled_from([0, 64 * 64 * 3, MAX_BYTES // 2]),
        ),
    )
    def make(self, capacity: int, max_overtakes: int, client_limits: ClientLimits) -> None:
        """Begin with nothing accepted."""
        self.client_limits = client_limits
        config = EngineConfig(
            queue_capacity=capacity, max_overtakes=max_overtakes, max_bytes_in_flight=MAX_BYTES
        )
        self.capacity = capacity

        async def make() -> Ledger:
            return Ledger(config, Path(self.folder.name), self._leave)

        self.ledger = self.loop.run_until_complete(make())

    def _leave(self, generation: Generation) -> None:
        self.told_to_leave[generation.request_id] += 1

    def teardown(self) -> None:
        """Whatever happened, all accepted ones end when the service does, and hold nothing."""
        try:
            if hasattr(self, "ledger"):
                self._finish()
        finally:
            self.loop.close()
            self.folder.cleanup()

    def _finish(self) -> None:
        self.end_all()
        for known in self.encoding:
            self._end(known, NotServing("DRAINING", timedelta(seconds=1)))
        for known in self.known.values():
            events, failure = self.loop.run_until_complete(read(known.generation))
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert isinstance(events[0].kind, Queued)
            kinds = [type(event.kind) for event in events]
            assert Queued not in kinds[kinds.index(Started) :] if Started in kinds else True
            assert (None if failure is None else type(failure)) is known.failure
        assert len(self.ledger) == 0
        assert self.ledger._admission.bytes_in_flight == 0

    @property
    def waiting(self) -> list[Generation]:
        """Those that wait, in order."""
        return list(self.ledger._admission)

    def _running(self, index: int) -> Generation:
        """Pick one of those that run."""
        running = sorted(self.ledger.running, key=lambda generation: generation.serial)
        return running[index % len(running)]

    def _known(self, generation: Generation) -> Known:
        return self.known[generation.request_id]

    def _end(self, known: Known, failure: RuntimeFailure) -> None:
        """End one, which changes nothing if it has ended."""
        self._run(self.ledger.end, known.generation, failure)
        if not known.ended:
            known.ended, known.failure = True, type(failure)
            known.events_at_end = known.generation.last_sequence

    def _run(self, call: object, *arguments: object) -> object:
        async def inside() -> object:
            return call(*arguments)  # type: ignore[operator]

        return self.loop.run_until_complete(inside())

    @rule(
        several=st.lists(st.tuples(priorities, sides, limits, clients), min_size=1, max_size=4),
    )
    def submit(self, several: list[tuple[Priority, int, float | None, str]]) -> None:
        """Each is accepted unless a bound says otherwise, and what is refused leaves no trace."""
        for each in several:
            self._submit(*each)

    def _submit(self, priority: Priority, side: int, limit: float | None, client: str) -> None:
        self.serial += 1
        settled = parameters(side)
        submission = Submission(
            request_id=f"g{self.serial}",
            digest=b"content",
            parameters=settled,
            revision=1,
            settle=lambda: (settled, ()),
            timeout=limit,
            priority=priority,
            client=client,
            limits=self.client_limits,
        )
        reached = self._reached(client, raw_bytes(settled))
        full = len(self.waiting) >= self.capacity
        in_flight = self.ledger._admission.bytes_in_flight
        before = [generation.last_sequence for generation in self.waiting]
        too_large = in_flight + raw_bytes(settled) > MAX_BYTES
        answer = self._run(self._admit, submission)
        match answer:
            case Generation():
                assert not reached
                assert not full
                assert not too_large
                self.known[answer.request_id] = Known(answer)
                return
            case ClientLimitReached():
                assert answer.limit == reached[0]
                may_fit = answer.asked <= answer.bound
                assert (answer.retry_after or timedelta(0)) > timedelta(0) or not may_fit
            case QueueFull():
                assert not reached
                assert full
                assert answer.retry_after > timedelta(0)
            case TooManyBytes():
                assert too_large
                assert answer.retry_after > timedelta(0)
            case CannotMeetDeadline():
                assert answer.estimate > 1.5 * answer.limit
        assert [generation.last_sequence for generation in self.waiting] == before
        assert self.ledger.same(submission.request_id, "", b"content") is None

    def _reached(self, client: str, size: int) -> list[str]:
        """List the limits that one more of a client would pass."""
        all_of_it = [known.generation for known in self.known.values() if not known.ended]
        mine = [each for each in all_of_it if each.submission.client == client]
        queued = [each for each in mine if each in self.waiting and each.state is State.QUEUED]
        held_by_limit = {
            "max_generations_per_client": len(mine) + 1,
            "max_queued_per_client": len(queued) + 1,
            "max_bytes_per_client": sum(raw_bytes(each.parameters) for each in mine) + size,
        }
        return [
            name
            for name, held in held_by_limit.items()
            if held > (getattr(self.client_limits, name) or MAX_BYTES * 9)
        ]

    def _admit(self, submission: Submission) -> Generation | RuntimeFailure:
        try:
            return self.ledger.admit(submission)
        except (ClientLimitReached, QueueFull, TooManyBytes, CannotMeetDeadline) as refusal:
            return refusal

    @precondition(lambda self: self.known)
    @rule(index=indices)
    def submit_again(self, index: int) -> None:
        """The same id stands for the same generation, and for no other content."""
        known = list(self.known.values())[index % len(self.known)]
        request_id = known.generation.request_id
        if known.failure is NotServing:
            assert self.ledger.same(request_id, "", b"content") is None
            return
        assert self.ledger.same(request_id, "", b"content") is known.generation
        assert self.ledger.same(request_id, "somebody else", b"content") is None
        with pytest.raises(RequestIdReused):
            self.ledger.same(request_id, "", b"other content")

    @precondition(lambda self: len(self.ledger.running) < RUNNING)
    @rule()
    def take(self) -> None:
        """The first in line starts, though others run."""
        order = self.waiting
        generation = self._run(self.ledger.take)
        assert generation is (order[0] if order else None)
        if not isinstance(generation, Generation):
            return
        generation.state, generation.stage = State.RUNNING, "prepare"
        if not generation.started_at:
            generation.started_at = self.loop.time()
            started = Started(
                parameters=generation.parameters, configuration_revision=1, world_size=1, epoch=1
            )
            generation.log.append(started)

    @precondition(lambda self: self.ledger.running)
    @rule(index=indices)
    def lose_the_ranks(self, index: int) -> None:
        """One that runs waits again, at the front, unless it has ended meanwhile."""
        running = self._running(index)
        if running.state.final:
            self.ledger.release(running)
            return
        self._run(self.ledger.begin_again, running, 2, "the ranks were lost")
        assert self.waiting[0] is running

    @precondition(lambda self: self.ledger.running)
    @rule(index=indices)
    def leave_the_ranks(self, index: int) -> None:
        """All ranks are done with one that runs; what it made is encoded next."""
        running = self._running(index)
        done = Denoising(epoch=1, number=1, sigmas=(), prepare_seconds=0.1)
        self._run(self.ledger.observe, running, done)
        for step in range(1, STEPS + 1):
            report = Step(
                epoch=1,
                number=1,
                step=step,
                total_steps=STEPS,
                timestep=1.0,
                sigma=None,
                seconds=STEP_SECONDS,
                transformers=(),
            )
            self._run(self.ledger.observe, running, report)
        ended = Ended(
            epoch=1,
            number=1,
            rank=0,
            outcome=Outcome.DONE,
            steps=STEPS,
            memory=RankMemory(rank=0, peak_bytes=1, free_bytes=1),
            denoise_seconds=STEP_SECONDS * STEPS,
            decode_seconds=0.1,
        )
        self._run(self.ledger.observe, running, ended)
        self.ledger.release(running)
        assert running not in self.ledger.running
        if not running.state.final:
            self.encoding.append(self._known(running))

    @precondition(lambda self: self.encoding)
    @rule(index=indices)
    def deliver(self, index: int) -> None:
        """It succeeds unless it has ended already; its output is in flight up to then."""
        known = self.encoding.pop(index % len(self.encoding))
        before = self.ledger._admission.bytes_in_flight
        chunk = OutputChunk(
            output_index=0, media_type="image/png", total_bytes=3, offset=0, data=b"abc"
        )
        known.generation.log.append(chunk)
        assert self.ledger._admission.bytes_in_flight == before + (0 if known.ended else 3)
        self._run(self.ledger.succeed, known.generation)
        if not known.ended:
            known.ended, known.events_at_end = True, known.generation.last_sequence

    @precondition(lambda self: self.known)
    @rule(index=indices)
    def cancel(self, index: int) -> None:
        """Somebody cancels any generation, in whatever state."""
        self._end(list(self.known.values())[index % len(self.known)], GenerationCancelled(0))

    @precondition(lambda self: self.known)
    @rule(index=indices)
    def expire(self, index: int) -> None:
        """A time limit passes; that of an ended one does not."""
        known = list(self.known.values())[index % len(self.known)]
        timer = known.generation.deadline
        if timer is None or timer.cancelled():
            assert known.ended or known.generation.submission.timeout is None
            return
        self._end(known, DeadlineExceeded(0))

    @precondition(lambda self: self.ledger.running)
    @rule(index=indices)
    def fail(self, index: int) -> None:
        """The ranks say that one that runs has failed."""
        self._end(self._known(self._running(index)), NanOutput("id"))

    @rule()
    def end_all(self) -> None:
        """The service drains: what waits and what runs ends."""
        affected = [*self.waiting, *self.ledger.running]
        failure = NotServing("DRAINING", timedelta(seconds=1))
        self._run(self.ledger.end_all, failure)
        for generation in affected:
            known = self._known(generation)
            if not known.ended:
                known.ended, known.failure = True, NotServing
                known.events_at_end = generation.last_sequence

    @invariant()
    def ends_are_final(self) -> None:
        """Each ends once, in a final state, and nothing is written after it."""
        for known in self.known.values():
            assert known.generation.state.final == known.ended
            assert (known.generation.log.ended_at is not None) == known.ended
            if known.ended:
                assert known.generation.last_sequence == known.events_at_end

    @invariant()
    def the_running_one_is_told_once(self) -> None:
        """The ranks are told at most once to leave a generation."""
        assert not self.told_to_leave or max(self.told_to_leave.values()) == 1

    @invariant()
    def bounds_hold(self) -> None:
        """Only one that was put back can make the queue longer than its capacity."""
        waiting = self.waiting
        assert len(self.ledger) == len(waiting) == len(set(waiting))
        assert sum(generation.state is State.QUEUED for generation in waiting) <= self.capacity
        raw = [raw_bytes(each.generation.parameters) for each in self.known.values()]
        open_ = [
            size for size, each in zip(raw, self.known.values(), strict=True) if not each.ended
        ]
        assert self.ledger._admission.bytes_in_flight == sum(open_) <= MAX_BYTES

    @invariant()
    def positions_are_told(self) -> None:
        """The newest `queued` of the next few, if they never ran, says where they stand."""
        for position, generation in enumerate(self.waiting[:_NEXT]):
            if generation.state is State.QUEUED:
                newest = generation.log._entries[-1]
                assert isinstance(newest, Event)
                assert isinstance(newest.kind, Queued)
                assert newest.kind.position == position


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
