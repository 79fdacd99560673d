"""A group's life as a state machine: made-up ranks at the ends of real socketpairs, no real time.

The ranks speak real frames through the real channel; only their processes are made up.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.runtime.fake_ranks import (
    KILLED,
    PARAMETERS,
    STEPS,
    FakeMember,
    FakeRank,
    StandingClock,
    descriptors,
    ended,
    failed,
    output_of,
    step,
)
from tests.service.fakes import FACTS

from ditcast_runtime import group as group_module
from ditcast_runtime.channel import Received
from ditcast_runtime.config import EngineConfig, first_configuration
from ditcast_runtime.group import Group, GroupLost, ReceivedOutput, RunReport
from ditcast_runtime.messages import (
    Alive,
    Cancel,
    Denoising,
    Loading,
    Ready,
    Report,
    Run,
    WarmingUp,
)

ALIVE_TIMEOUT = 3.0

DEATHS = ("killed", "gone", "unnoticed")
ACCIDENTS = (*DEATHS, "silent", "stuck", "stranger", "no pixels")

ranks = st.integers(0, 2)


class GroupMachine(RuleBasedStateMachine):
    """Ranks that load, run, fail, die, fall silent and say what they must not, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.open_before = descriptors()
        self.loop = StandingClock()
        self.folder = tempfile.TemporaryDirectory()
        self.group: Group
        self.number = 10
        self.epoch = 6

    @initialize(world_size=st.integers(1, 3))
    def start(self, world_size: int) -> None:
        """Begin to start a group."""
        self.config = config = EngineConfig(
            world_size=world_size,
            alive_timeout=ALIVE_TIMEOUT,
            first_steps_timeout=7.0,
            decode_timeout=5.0,
            vote_timeout=2.0,
        )
        self.ranks: list[FakeRank] = []
        FakeMember.made = self.ranks
        self.lost = 0
        self.doomed = False
        """Whether something has happened that no group survives."""
        self.served = False
        """Whether all ranks have been ready."""
        self.given: list[int] = []
        """The numbers of the newest run, and of what was sent ahead meanwhile."""
        self.said: dict[int, list[str]] = {}
        self.heard: dict[int, list[str]] = {}
        self.run_task: asyncio.Task[None] | None = None
        self.epoch += 1

        async def make() -> asyncio.Task[Any]:
            self.group = Group(
                config,
                first_configuration(config),
                self.epoch,
                Path(self.folder.name),
                json_logs=True,
                log_level="error",
                on_progress=lambda _: None,
                on_lost=self._count_loss,
            )
            return asyncio.create_task(self.group.start())

        self.start_task = self.loop.run_until_complete(make())
        self._settle()
        assert len(self.ranks) == world_size
        for rank, fake in enumerate(self.ranks):
            loading = Loading(epoch=self.epoch, rank=rank, stage="weights", seconds=0.1)
            warming = WarmingUp(epoch=self.epoch, rank=rank)
            ready = Ready(epoch=self.epoch, rank=rank, facts=FACTS, seconds=0.1)
            self._to_say(fake, loading, warming, ready)

    def teardown(self) -> None:
        """Killed, a group leaves no descriptor, no task and no process."""
        try:
            self._bury()
        finally:
            self.loop.close()
            self.folder.cleanup()
        assert descriptors() == self.open_before

    def _bury(self) -> None:
        if not hasattr(self, "group"):
            return
        self.loop.run_until_complete(self.group.kill())
        for task in (self.start_task, self.run_task):
            if task is not None:
                task.cancel()
        self._settle()
        assert not asyncio.all_tasks(self.loop)
        assert self.group._timer is None
        for rank in self.ranks:
            assert rank.process.returncode is not None
            rank.end.close()
        assert self.lost == int(self.doomed)

    @precondition(lambda self: self.doomed)
    @rule()
    def replace(self) -> None:
        """A lost group is killed whole, and another takes its place."""
        self._bury()
        self.start(self.config.world_size)

    def _count_loss(self) -> None:
        self.lost += 1

    def _settle(self) -> None:
        """Let everything happen that can happen now."""

        async def some_turns() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.loop.run_until_complete(some_turns())

    def _to_say(self, rank: FakeRank, *reports: Report) -> None:
        for report in reports:
            rank.script.append(lambda report=report: rank.channel.send(report))  # type: ignore[misc]

    @property
    def idle(self) -> bool:
        """Whether all ranks serve and none runs."""
        return self.started and not self.doomed and (self.run_task is None or self.run_task.done())

    @property
    def started(self) -> bool:
        """Whether all ranks have said that they are ready."""
        return self.start_task.done() and self.start_task.exception() is None

    @property
    def running(self) -> bool:
        """Whether a generation is under way."""
        return self.run_task is not None and not self.run_task.done()

    @precondition(lambda self: not self.doomed and any(rank.script for rank in self.ranks))
    @rule(order=st.lists(ranks, min_size=1, max_size=12))
    def go_on(self, order: list[int]) -> None:
        """Ranks say what comes next, each its own, in any order."""
        for rank in order:
            able = [each for each in self.ranks if each.script]
            if able:
                able[rank % len(able)].script.pop(0)()
                self._settle()
        self.served = self.served or self.started

    @precondition(lambda self: self.idle)
    @rule(outcomes=st.lists(st.booleans(), min_size=3, max_size=3))
    def run(self, outcomes: list[bool]) -> None:
        """Give the ranks a generation; some of them may fail in it."""
        self.given.clear()
        self._give(outcomes)

        async def follow() -> None:
            for number in self.given:  # What is sent ahead comes to it meanwhile.
                async for report in self.group.reports(number):
                    self._hear(number, report)

        async def begin() -> asyncio.Task[None]:
            return asyncio.create_task(follow())

        self.run_task = self.loop.run_until_complete(begin())
        self._settle()

    @precondition(lambda self: self.running and not self.doomed and len(self.given) == 1)
    @rule(outcomes=st.lists(st.booleans(), min_size=3, max_size=3))
    def send_ahead(self, outcomes: list[bool]) -> None:
        """Give the ranks another generation while one runs: each begins it once it is through."""
        self._give(outcomes)

    def _give(self, outcomes: list[bool]) -> None:
        self.number += 1
        self.given.append(self.number)
        self.said[self.number], self.heard[self.number] = [], []
        self.group.begin(
            Run(epoch=self.epoch, number=self.number, request_id="g", parameters=PARAMETERS)
        )
        for rank, fake in enumerate(self.ranks):
            self._script(rank, fake, fails=outcomes[rank])

    def _script(self, rank: int, fake: FakeRank, *, fails: bool) -> None:
        about: Any = {"epoch": self.epoch, "number": self.number}
        reports: list[Report] = []
        if rank == 0:
            reports.append(Denoising(**about, sigmas=(1.0,), prepare_seconds=0.1))
            reports += [step(self.epoch, self.number, each) for each in range(1, STEPS + 1)]
        if fails:
            reports.append(failed(self.epoch, self.number, rank))
        for report in reports:
            fake.script.append(lambda report=report: self._send(rank, report))  # type: ignore[misc]
        if rank == 0 and not fails:
            fake.script.append(partial(self._send_output, self.number))
        last = ended(self.epoch, self.number, rank)
        fake.script.append(lambda: self._send(rank, last))

    def _send(self, rank: int, report: Report) -> None:
        self.said[report.number].append(f"{type(report).__name__} of {rank}")  # type: ignore[union-attr]
        self.ranks[rank].channel.send(report)

    def _send_output(self, number: int, *, heard: bool = True) -> None:
        pixels = os.memfd_create("test-output", os.MFD_CLOEXEC)
        self.ranks[0].channel.send(output_of(self.epoch, number), pixels)
        os.close(pixels)
        if heard:
            self.said[number].append("Output of 0")

    def _hear(self, number: int, report: RunReport) -> None:
        if isinstance(report, ReceivedOutput):
            assert report.message.number == number
            os.close(report.descriptor)
            self.heard[number].append("Output of 0")
        else:
            assert report.number == number
            name = f"{type(report).__name__} of {getattr(report, 'rank', 0)}"
            self.heard[number].append(name)

    @precondition(lambda self: self.running and not self.doomed)
    @rule()
    def cancel(self) -> None:
        """A cancel reaches rank 0 until the generation is over, and changes nothing else."""
        while self.ranks[0].channel.receive(0) is not None:
            pass
        for number in range(self.given[0] - 1, self.number + 2):
            self.group.cancel(number)
        for number in self.given:
            if not self._all_through(number):
                cancel = Cancel(epoch=self.epoch, number=number)
                assert self.ranks[0].channel.receive(0) == Received(cancel, None)
        assert self.ranks[0].channel.receive(0) is None

    @precondition(lambda self: self.started and not self.doomed)
    @rule(rank=ranks, kind=st.sampled_from(["step", "ended", "output"]))
    def say_something_late(self, rank: int, kind: str) -> None:
        """A report about a run that is over is dropped, and so are its pixels."""
        fake = self.ranks[rank % len(self.ranks)]
        number = (self.given or [self.number])[0] - 1
        match kind:
            case "step":
                fake.channel.send(step(self.epoch, number, 1))
            case "ended":
                fake.channel.send(ended(self.epoch, number, rank % len(self.ranks)))
            case _:
                self._send_output(number, heard=False)
        self._settle()

    @precondition(lambda self: not self.doomed)
    @rule(what=st.sampled_from(ACCIDENTS), rank=ranks)
    def suffer(self, what: str, rank: int) -> None:
        """An accident: one rule for all, so that most of what happens goes well."""
        rank %= len(self.ranks)
        match what:
            case _ if what in DEATHS:
                self._die(rank, what)
            case "silent" if self.started:
                self._stay_alive(ALIVE_TIMEOUT + 3, without=rank)
            case "stuck" if self.running:
                self._stay_alive(max(self.config.first_steps_timeout, 1) + 2)
            case "stranger":
                # Whoever is of another group has no business here.
                self.ranks[rank].channel.send(Alive(epoch=self.epoch - 1, rank=rank))
            case "no pixels" if self.running:
                output = output_of(self.epoch, self.number)
                self.ranks[0].channel.send(output)
            case _:
                return
        self._settle()
        self.doomed = True
        self._check_loss()
        if rank != 0 or what not in DEATHS:
            # Nobody hears this any more, and its descriptor must not be left either.
            self._send_output(self.number, heard=False)
            self._settle()

    def _die(self, rank: int, how: str) -> None:
        """End a rank; its exit code may be late, or never come."""
        fake = self.ranks[rank]
        fake.end.shutdown(socket.SHUT_RDWR)
        if how != "unnoticed":
            fake.process.end(KILLED if how == "killed" else 1)
        self._settle()
        self._pass_time(2.0)

    def _stay_alive(self, seconds: float, without: int | None = None) -> None:
        """Let time pass in which nothing comes but signs of life, of all but one perhaps."""
        until = self.loop.now + seconds
        while self.loop.now < until and not self.lost:
            for rank, fake in enumerate(self.ranks):
                if rank != without:
                    fake.channel.send(Alive(epoch=self.epoch, rank=rank))
            self._settle()
            self._pass_time(1.0)

    def _pass_time(self, seconds: float) -> None:
        self.loop.now += seconds
        self._settle()

    def _check_loss(self) -> None:
        """Whoever waits for the group is told, with the reason; nobody waits for ever."""
        assert self.group.explanation
        for task in (self.start_task, self.run_task):
            if task is None:
                continue
            assert task.done()
            failure = task.exception()
            if task is self.run_task and all(map(self._all_through, self.given)):
                assert failure is None
            elif task is self.run_task or not self.served:
                assert isinstance(failure, GroupLost)
                assert failure.explanation == self.group.explanation

    def _all_through(self, number: int) -> bool:
        return sum(name.startswith("Ended") for name in self.said[number]) == len(self.ranks)

    @invariant()
    def it_is_lost_at_most_once(self) -> None:
        """It is lost when something happened that costs a group, and only once."""
        assert self.lost == int(self.doomed)

    @invariant()
    def all_is_heard_in_order(self) -> None:
        """What the ranks say of a run is given on, all of it, in order, and not before its turn."""
        turn = True
        for number in self.given:
            assert self.heard[number] == (self.said[number] if turn else [])
            turn = turn and self._all_through(number)

    @invariant()
    def a_run_ends_with_its_last_rank(self) -> None:
        """A run goes on until each rank is through, and no longer."""
        if self.run_task is None or self.doomed:
            return
        assert self.run_task.done() == all(map(self._all_through, self.given))


TestGroup = GroupMachine.TestCase
TestGroup.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def fake_members() -> Any:  # noqa: ANN401 (an iterator)
    """Put made-up ranks in the place of processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_module, "Member", FakeMember)
        yield
