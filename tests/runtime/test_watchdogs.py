"""Each time limit of a group: just before it nothing happens, just after it the group is lost.

Made-up ranks at the ends of real socketpairs, and a clock that stands. No limit has its default, so
that each is seen to be the configured one. The limit of a drain is `test_the_grace_bounds_a_drain`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.runtime import making
from tests.runtime.fake_ranks import (
    PARAMETERS,
    STEPS,
    FakeMember,
    FakeRank,
    StandingClock,
    ended,
    failed,
    step,
)
from tests.service.fakes import FACTS

from ditcast_runtime import group as group_module
from ditcast_runtime.config import EngineConfig, first_configuration
from ditcast_runtime.estimates import Estimates
from ditcast_runtime.events import CacheDecision, TransformerDecision
from ditcast_runtime.group import Group, GroupLost
from ditcast_runtime.messages import Alive, Denoising, Loading, Ready, Report, Run, WarmingUp
from ditcast_runtime.runner import step_limit

EPOCH = 3
NUMBER = 7
STEP_LIMIT = 17.0
CONFIG = EngineConfig(
    world_size=2,
    load_timeout=11.0,
    warm_up_timeout=12.0,
    first_steps_timeout=13.0,
    decode_timeout=14.0,
    vote_timeout=15.0,
    alive_timeout=16.0,
    shutdown_timeout=18.0,
    step_timeout_floor=4.0,
    step_timeout_factor=3.0,
)


class Ranks:
    """A group of two, and what its ranks say."""

    def __init__(self, loop: StandingClock, folder: Path) -> None:
        self.loop = loop
        self.made: list[FakeRank] = []
        FakeMember.made = self.made
        self.tasks: list[asyncio.Task[Any]] = []

        async def make() -> None:
            self.group = Group(
                CONFIG,
                first_configuration(CONFIG),
                EPOCH,
                folder,
                json_logs=True,
                log_level="error",
                on_progress=lambda _: None,
                on_lost=lambda: None,
            )
            self.tasks.append(asyncio.create_task(self.group.start()))

        loop.run_until_complete(make())
        self.settle()

    def settle(self) -> None:
        """Let everything happen that can happen now."""

        async def some_turns() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.loop.run_until_complete(some_turns())

    def say(self, rank: int, *reports: Report) -> None:
        """Have a rank report."""
        for report in reports:
            self.made[rank].channel.send(report)
        self.settle()

    def run(self, limit: float | None) -> None:
        """Give ranks that are ready a generation, with a limit for its steps."""
        for rank in range(CONFIG.world_size):
            self.say(rank, *up_to_warm_up(rank), ready(rank))
        command = Run(epoch=EPOCH, number=NUMBER, request_id="g", parameters=PARAMETERS)

        async def follow() -> None:
            self.group.begin(command)
            async for _ in self.group.reports(command.number, limit):
                pass

        async def begin() -> None:
            self.tasks.append(asyncio.create_task(follow()))

        self.loop.run_until_complete(begin())
        self.settle()

    def denoise(self, steps: int, limit: float | None = STEP_LIMIT) -> None:
        """Have a generation come as far as so many steps."""
        self.run(limit)
        self.say(0, Denoising(epoch=EPOCH, number=NUMBER, sigmas=(1.0,), prepare_seconds=0.1))
        self.say(0, *(step(EPOCH, NUMBER, each) for each in range(1, steps + 1)))

    def wait(self, seconds: float, *, alive: bool = True) -> None:
        """Let time pass in which nothing comes but signs of life."""
        until = self.loop.now + seconds
        while self.loop.now < until:
            self.loop.now = min(until, self.loop.now + 1.0)
            self.settle()
            for rank in range(CONFIG.world_size if alive else 0):
                self.say(rank, Alive(epoch=EPOCH, rank=rank))


def loading(rank: int) -> Loading:
    """Report progress."""
    return Loading(epoch=EPOCH, rank=rank, stage="weights", seconds=0.1)


def ready(rank: int) -> Ready:
    """Report that a rank can run."""
    return Ready(epoch=EPOCH, rank=rank, facts=FACTS, seconds=0.1)


def up_to_warm_up(rank: int) -> tuple[Report, Report]:
    """Give what a rank says until it warms up."""
    return loading(rank), WarmingUp(epoch=EPOCH, rank=rank)


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """Give a group that has just been started."""
    monkeypatch.setattr(group_module, "Member", FakeMember)
    loop = StandingClock()
    made = Ranks(loop, tmp_path)
    yield made
    loop.run_until_complete(made.group.kill())
    for task in made.tasks:
        task.cancel()
    made.settle()
    for rank in made.made:
        rank.end.close()
    loop.close()


def expect_lost_after(ranks: Ranks, seconds: float, why: str, *, alive: bool = True) -> None:
    """See that nothing happens before, that it is lost after, and that whoever waits is told."""
    ranks.wait(seconds - 0.5, alive=alive)
    assert ranks.group.explanation == ""
    ranks.wait(1.6, alive=alive)
    assert why in ranks.group.explanation
    assert isinstance(ranks.tasks[-1].exception(), GroupLost)


def test_loading_without_progress(ranks: Ranks) -> None:
    """A sign of progress puts the limit off; being alive is none."""
    ranks.wait(CONFIG.load_timeout - 1)
    ranks.say(1, loading(1))
    expect_lost_after(ranks, CONFIG.load_timeout, "loading showed no progress")


def test_loading_without_a_word(ranks: Ranks) -> None:
    """Ranks that have not said anything yet are bounded too."""
    expect_lost_after(ranks, CONFIG.load_timeout, "loading showed no progress", alive=False)


def test_the_warm_up(ranks: Ranks) -> None:
    """It is bounded as a whole: progress within it puts nothing off."""
    for rank in range(CONFIG.world_size):
        ranks.say(rank, *up_to_warm_up(rank))
    ranks.wait(CONFIG.warm_up_timeout - 1)
    ranks.say(0, loading(0))
    expect_lost_after(ranks, 1, "the warm-up took too long")


def test_the_preparation(ranks: Ranks) -> None:
    """From the command to the first step."""
    ranks.run(STEP_LIMIT)
    expect_lost_after(ranks, CONFIG.first_steps_timeout, "the preparation took too long")


@pytest.mark.parametrize("limit", [STEP_LIMIT, None])
def test_a_step(ranks: Ranks, limit: float | None) -> None:
    """Its own limit where steps of its kind are known, else that of first steps."""
    ranks.denoise(STEPS - 1, limit)
    expect_lost_after(ranks, limit or CONFIG.first_steps_timeout, "no step within")


def test_the_decoding(ranks: Ranks) -> None:
    """From the last step to the output."""
    ranks.denoise(STEPS)
    expect_lost_after(ranks, CONFIG.decode_timeout, "decoding took too long")


@pytest.mark.parametrize("first", [failed(EPOCH, NUMBER, 1), ended(EPOCH, NUMBER, 1)])
def test_the_last_vote(ranks: Ranks, first: Report) -> None:
    """From the first rank that failed, or is through, to the last; further reports prolong nothing.

    Here rank 1 is first and rank 0 never comes.
    """
    ranks.denoise(STEPS - 1)
    ranks.say(1, first)
    ranks.wait(CONFIG.vote_timeout - 1)
    ranks.say(0, failed(EPOCH, NUMBER, 0))
    expect_lost_after(ranks, 1, "not all ranks came to the last vote")


def test_the_silence_of_a_rank(ranks: Ranks) -> None:
    """Idle ranks too have to give signs of life."""
    ranks.denoise(STEPS - 1, limit=100.0)
    expect_lost_after(ranks, CONFIG.alive_timeout, "gave no sign of life", alive=False)


def test_idle_ranks_that_do_not_leave(ranks: Ranks) -> None:
    """Told to leave, they are killed when the time is over, and `stop` returns."""
    for rank in range(CONFIG.world_size):
        ranks.say(rank, *up_to_warm_up(rank), ready(rank))

    async def begin() -> None:
        ranks.tasks.append(asyncio.create_task(ranks.group.stop()))

    ranks.loop.run_until_complete(begin())
    ranks.wait(CONFIG.shutdown_timeout - 0.5)
    assert not ranks.tasks[-1].done()
    assert all(rank.process.returncode is None for rank in ranks.made)
    ranks.wait(1.6, alive=False)
    assert ranks.tasks[-1].done()
    assert all(rank.process.returncode is not None for rank in ranks.made)


@pytest.mark.parametrize(
    ("computed", "limit"), [((1.0, 9.0), None), ((1.0, 2.0, 9.0), 6.0), ((0.1, 0.1, 0.1), 4.0)]
)
async def test_the_limit_of_a_step_follows_its_kind(
    computed: tuple[float, ...], limit: float | None
) -> None:
    """A multiple of the median, never below the floor, unknown until three steps are known.

    Cached steps do not count: by their median, a computed one would be taken for stuck.
    """
    estimates = Estimates()
    learn(estimates, CacheDecision.COMPUTED, computed)
    learn(estimates, CacheDecision.CACHED, [0.001] * 20)
    learn(estimates, CacheDecision.PRUNED, [0.002] * 20)
    assert step_limit(CONFIG, estimates.step_median(making.PARAMETERS)) == limit


def learn(estimates: Estimates, decision: CacheDecision, seconds: Sequence[float]) -> None:
    """Have estimates observe steps of one kind."""
    of_main = TransformerDecision(name="transformer", decision=decision)
    for number, each in enumerate(seconds, start=1):
        report = msgspec.structs.replace(
            step(EPOCH, NUMBER, number), seconds=each, transformers=(of_main,)
        )
        estimates.observe(making.generation(), report, now=0.0)
