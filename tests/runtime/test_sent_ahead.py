"""The next generation is sent to ranks that have only to vote on the one before: what of it counts.

That ranks have it when they are free is what `make bench ARGS=overlap` measures.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.fleet_of_fakes import Running, running, settled
from tests.service.fakes import CONFIGURATION

from ditcast_runtime.accepted import Generation
from ditcast_runtime.events import Restarted, Started
from ditcast_runtime.generation import Priority, State
from ditcast_runtime.settings import CacheSettings, DBCache

CACHED = replace(CONFIGURATION, cache=CacheSettings(method=DBCache()))


async def nearly_through(made: Running, *names: str) -> list[Generation]:
    """Have the first of some generations made, but for its last vote."""
    generations = await made.submit(*names)
    made.fakes.of(0).through.set()
    await settled()
    return generations


async def test_the_next_is_sent_before_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One, and not the one after it; the next one is sent when that is as far."""
    async with running(monkeypatch, tmp_path, groups=1) as made:
        first, second, third = await nearly_through(made, "a", "b", "c")
        ranks = made.fakes.of(0)
        assert ranks.runs == ["a", "b"]
        assert (first.state, second.state, third.state) == (
            State.RUNNING,
            State.RUNNING,
            State.QUEUED,
        )
        ranks.through.clear()
        ranks.free.set()
        await settled()
        assert ranks.runs == ["a", "b", "c"]
        assert not made.ledger.vitals.running


async def test_nothing_is_sent_while_it_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What comes meanwhile may have priority, or change what is in force."""
    async with running(monkeypatch, tmp_path, groups=1) as made:
        await made.submit("a", "b")
        await made.submit("c", priority=Priority.HIGH)
        assert made.fakes.of(0).runs == ["a"]
        made.fakes.of(0).through.set()
        await settled()
        assert made.fakes.of(0).runs == ["a", "c"]


async def test_a_change_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is sent ahead of it, and the next begins under what came into force."""
    async with running(monkeypatch, tmp_path, groups=1) as made:
        await made.submit("a")
        _, waiting = made.propose(CACHED)
        await settled()
        [second] = await nearly_through(made, "b")
        ranks = made.fakes.of(0)
        assert ranks.runs == ["a"]
        ranks.free.set()
        await waiting
        started = [each for each in await made.events(second) if isinstance(each, Started)]
        assert [each.configuration_revision for each in started] == [2]


async def test_an_output_needs_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With one output being made and another being encoded nothing more is sent."""
    async with running(monkeypatch, tmp_path, groups=1) as made:
        await made.submit("a")
        await made.delivery.place()
        await nearly_through(made, "b")
        assert made.fakes.of(0).runs == ["a"]
        made.delivery.free()
        made.fakes.of(0).free.set()
        await settled()
        assert made.fakes.of(0).runs == ["a", "b"]


async def test_a_cancel_reaches_what_was_sent_ahead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The ranks are told, and leave it at its first boundary."""
    async with running(monkeypatch, tmp_path, groups=1) as made:
        first, second = await nearly_through(made, "a", "b")
        made.ledger.cancel(second)
        assert second.state is State.CANCELLED
        assert made.fakes.of(0).cancels == [second.number]
        assert first.state is State.RUNNING


async def test_lost_ranks_give_both_back_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both begin again before all others; the second has lost no attempt by it."""
    async with running(monkeypatch, tmp_path, groups=1, max_attempts=1) as made:
        generations = await nearly_through(made, "a", "b", "c")
        made.fakes.of(0).lose()
        await settled()
        _, second, _ = generations
        fresh = made.fakes.of(0)
        assert fresh.epoch == 2
        # With one attempt, the first has none left.
        assert fresh.runs == ["b"]
        fresh.free.set()
        restarted = [each for each in await made.events(second) if isinstance(each, Restarted)]
        assert [(each.attempt, each.max_attempts) for each in restarted] == [(2, 2)]
        await settled()
        # Two places in all: neither call has kept one.
        await made.delivery.place()
        assert not made.delivery.full


async def test_lost_ranks_keep_the_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was nearly through runs first, then what was sent ahead, then the rest."""
    async with running(monkeypatch, tmp_path, groups=1) as made:
        await nearly_through(made, "a", "b", "c")
        made.fakes.of(0).lose()
        await settled()
        made.fakes.of(0).free.set()
        await settled()
        assert made.fakes.of(0).runs == ["a", "b", "c"]
