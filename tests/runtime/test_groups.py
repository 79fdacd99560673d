"""Several groups behind one ledger: who takes what, what a loss costs, how changes come to all."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.fleet_of_fakes import STYLE, Fakes, running, settled
from tests.runtime.making import PARAMETERS
from tests.service.fakes import CONFIGURATION

from ditcast_runtime.causes import RestartCause
from ditcast_runtime.errors import (
    AdapterRefused,
    ChangeRefused,
    ConfigError,
    RanksLost,
    ReloadFailed,
    UnsupportedRequest,
)
from ditcast_runtime.events import RequestWarning, Restarted, Started
from ditcast_runtime.generation import AdapterUse, State
from ditcast_runtime.group import CannotLoad, GroupLost
from ditcast_runtime.settings import CacheSettings, DBCache, LoadingSettings

LOST = GroupLost(RestartCause.DIED, "rank 0 was killed")
CANNOT = CannotLoad(0, "OutOfMemoryError", "too little memory")
TILED = replace(CONFIGURATION, loading=LoadingSettings(vae_tiling=True))
CACHED = replace(CONFIGURATION, cache=CacheSettings(method=DBCache()))
STYLED = replace(PARAMETERS, adapters=(AdapterUse(name="style", weight=1.0, weights_digest="ab"),))


async def test_whoever_is_free_takes_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two at work, the third waits for the first that is through; the epochs tell all apart."""
    async with running(monkeypatch, tmp_path) as made:
        await made.submit("a", "b", "c")
        first, second = made.fakes.with_run("a")
        assert second.runs == ["b"]
        second.free.set()
        await settled()
        assert (first.runs, second.runs) == (["a"], ["b", "c"])
        assert {first.epoch, second.epoch} == {1, 2}
        assert made.ledger.vitals.running == 1


async def test_those_that_are_free_take_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Single requests go round."""
    async with running(monkeypatch, tmp_path) as made:
        for name in ("a", "b", "c", "d"):
            await made.submit(name)
            busy, _ = made.fakes.with_run(name)
            busy.free.set()
            await settled()
            busy.free.clear()
        runs = sorted(fake.runs for fake in made.fakes.made)
        assert runs == [["a", "c"], ["b", "d"]]


async def test_what_a_lost_group_ran_begins_again_on_any(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other goes on undisturbed, and takes it before those that waited."""
    async with running(monkeypatch, tmp_path) as made:
        generation, *_ = await made.submit("a", "b", "c")
        first, second = made.fakes.with_run("a")
        made.fakes.loads_at_once = False
        first.lose()
        await settled()
        assert first.gone
        assert not second.gone
        assert made.groups.serving == {second.index}
        assert generation.state is State.RESTARTING
        second.free.set()
        await settled()
        assert second.runs[:2] == ["b", "a"]
        [restarted] = [
            kind for kind in await made.events(generation) if isinstance(kind, Restarted)
        ]
        assert restarted.epoch == 0
        assert generation.group == second.index


async def test_others_start_once_the_first_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What cannot be served is found out once; what only one device lacks names the groups."""
    fakes = Fakes()
    fakes.loads_at_once = False
    async with running(monkeypatch, tmp_path, fakes, groups=3) as made:
        assert [fake.index for fake in fakes.made] == [0]
        fakes.load_failures[2] = CANNOT
        fakes.loads_at_once = True
        fakes.made[0].loaded.set()
        with pytest.raises(ConfigError) as error:
            await made.task
        assert [problem.field for problem in error.value.problems] == ["groups"]
        assert all(fake.gone for fake in fakes.made)


async def test_a_reload_is_tried_by_one_and_then_taken_by_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While one tries it the other serves; what begins after the answer has the new revision."""
    async with running(monkeypatch, tmp_path) as made:
        await made.submit("a")
        busy, idle = made.fakes.with_run("a")
        made.fakes.loads_at_once = False
        _, waiting = made.propose(TILED)
        await settled()
        tried = made.fakes.made[-1]
        assert (tried.index, tried.configuration) == (idle.index, TILED)
        assert made.groups.serving == {busy.index}
        assert not waiting.done()
        tried.loaded.set()
        await waiting
        [after] = await made.submit("b", revision=2)
        assert tried.runs == ["b"]
        assert after.revision == 2
        # The other still has its own from before, and leaves only when that is through.
        assert made.groups.serving == {0, 1}
        busy.free.set()
        await settled()
        assert made.groups.serving == {idle.index}
        assert made.fakes.of(busy.index).configuration.loading.vae_tiling
        assert made.restarts == [
            (idle.index, RestartCause.RELOAD),
            (busy.index, RestartCause.RELOAD),
        ]


async def test_a_reload_that_fails_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The one that tried it comes back with the old configuration; nothing was in force."""
    async with running(monkeypatch, tmp_path) as made:
        made.fakes.start_failures[3] = CANNOT
        _, waiting = made.propose(TILED)
        with pytest.raises(ReloadFailed):
            await waiting
        await settled()
        assert made.configurations == [CONFIGURATION]
        *_, tried, again = made.fakes.made
        assert len(made.fakes.made) == 4
        assert (tried.configuration, again.configuration) == (TILED, CONFIGURATION)
        assert tried.index == again.index
        assert made.groups.serving == {0, 1}


async def test_a_reload_whose_ranks_die_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They have refused nothing; what dies twice is given up, and the old is back."""
    async with running(monkeypatch, tmp_path) as made:
        made.fakes.start_failures |= {3: LOST, 6: LOST, 7: LOST}
        _, waiting = made.propose(TILED)
        await waiting
        await settled()
        assert [each.epoch for each in made.fakes.made] == [1, 2, 3, 4, 5]
        _, waiting = made.propose(CONFIGURATION)
        with pytest.raises(ReloadFailed):
            await waiting
        await settled()
        *_, tried, again, back = made.fakes.made
        tiled = [each.configuration.loading.vae_tiling for each in (tried, again, back)]
        assert tiled == [False, False, True]
        assert made.groups.serving == {0, 1}


async def test_a_group_that_cannot_take_what_is_in_force_rests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It never goes back to the old: all serve with the new, or not at all."""
    async with running(monkeypatch, tmp_path, crash_loop_window=1.0) as made:
        made.fakes.start_failures[4] = CANNOT
        _, waiting = made.propose(TILED)
        await waiting
        await settled()
        assert made.groups.serving == {made.fakes.made[2].index}
        async with asyncio.timeout(10):
            while made.groups.serving != {0, 1}:  # noqa: ASYNC110 (of the fleet)
                await asyncio.sleep(0.05)
        assert all(made.fakes.of(index).configuration.loading.vae_tiling for index in (0, 1))


async def test_ranks_that_loaded_what_is_no_longer_in_force_never_serve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A change came into force while they loaded: they load once more."""
    async with running(monkeypatch, tmp_path, groups=3) as made:
        made.fakes.loads_at_once = False
        made.fakes.of(2).lose()
        await settled()
        late = made.fakes.of(2)
        _, waiting = made.propose(TILED)
        await settled()
        made.fakes.made[-1].loaded.set()
        await waiting
        late.loaded.set()
        await settled()
        assert late.gone
        assert 2 not in made.groups.serving
        assert made.fakes.of(2).configuration.loading.vae_tiling


async def test_what_began_before_a_reload_says_what_it_ended_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its ranks are lost when no others like them are left: the receipt names the new ones."""
    async with running(monkeypatch, tmp_path) as made:
        [generation] = await made.submit("a")
        _, waiting = made.propose(TILED)
        await waiting
        assert generation.revision == 1
        old, new = made.fakes.with_run("a")
        made.fakes.loads_at_once = False
        old.lose()
        await settled()
        assert new.runs == ["a"]
        assert generation.revision == 2
        assert generation.configuration == made.configurations[-1]
        new.free.set()
        kinds = await made.events(generation)
        assert [kind.configuration_revision for kind in kinds if isinstance(kind, Started)] == [1]
        assert [kind.message for kind in kinds if isinstance(kind, RequestWarning)] == [
            "the ranks have been loaded for revision 2 meanwhile"
        ]


async def test_a_live_change_is_in_force_once_all_that_serve_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Until then those that agreed go on with the old."""
    async with running(monkeypatch, tmp_path) as made:
        await made.submit("a", "b")
        _, waiting = made.propose(CACHED)
        first, second = made.fakes.with_run("a")
        second.free.set()
        await settled()
        assert len(second.orders) == 1
        assert not waiting.done()
        [between] = await made.submit("c")
        assert between.revision == 1
        assert second.runs == ["b", "c"]
        first.free.set()
        await waiting
        assert len(first.orders) == 1
        assert made.configurations[-1].revision == 2


async def test_what_loses_ranks_never_loses_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The one that tries a change tries it again; the others never see it."""
    async with running(monkeypatch, tmp_path) as made:
        made.fakes.lose_orders = {0, 1}
        _, waiting = made.propose(CACHED)
        with pytest.raises(ChangeRefused):
            await waiting
        await settled()
        [first, second] = made.restarts
        assert first == second
        assert made.configurations == [CONFIGURATION]
        assert made.groups.serving == {0, 1}


async def test_a_group_that_is_lost_need_not_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its fresh ranks begin with what is in force by then."""
    async with running(monkeypatch, tmp_path) as made:
        await made.submit("a", "b")
        _, waiting = made.propose(CACHED)
        first, second = made.fakes.with_run("a")
        second.free.set()
        await settled()
        made.fakes.loads_at_once = False
        first.lose()
        await waiting
        assert made.configurations[-1].revision == 2
        assert made.fakes.of(first.index).orders == []


async def test_an_adapter_is_on_all_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also on ranks that start later; its end is for all too."""
    async with running(monkeypatch, tmp_path) as made:
        _, waiting = made.propose_adapter(loads=True)
        await waiting
        assert [fake.adapters for fake in made.fakes.made] == [["style"], ["style"]]
        assert [each.components for each in made.adapters.all] == [("transformer",)]
        made.fakes.of(0).lose()
        await settled()
        assert made.fakes.of(0).adapters == ["style"]
        _, waiting = made.propose_adapter(loads=False)
        await waiting
        assert made.fakes.of(0).adapters == made.fakes.of(1).adapters == []


async def test_an_adapter_that_one_group_refuses_is_on_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What held it already lets go of it before its next generation."""
    async with running(monkeypatch, tmp_path) as made:
        made.fakes.refuse_orders = {1}
        _, waiting = made.propose_adapter(loads=True)
        with pytest.raises(AdapterRefused):
            await waiting
        await settled()
        assert [fake.adapters for fake in made.fakes.made] == [[], []]
        assert made.adapters.all == ()


async def test_an_adapter_whose_writer_has_gone_is_on_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One has it already, the other is at work: it goes again, and the next change has its turn."""
    async with running(monkeypatch, tmp_path) as made:
        await made.submit("a")
        _, waiting = made.propose_adapter(loads=True)
        await settled()
        busy, idle = made.fakes.with_run("a")
        assert idle.adapters == ["style"]
        waiting.cancel()
        await settled()
        busy.free.set()
        await settled()
        assert made.fakes.of(0).adapters == made.fakes.of(1).adapters == []
        assert made.adapters.all == ()


async def test_an_adapter_goes_when_nothing_that_has_begun_needs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What begins meanwhile and names it is refused; what began may begin again, on any group."""
    async with running(monkeypatch, tmp_path, adapters=(STYLE,)) as made:

        def settle() -> object:
            return STYLED, ()

        [begun] = await made.submit("a", parameters=STYLED, settle=settle)
        _, waiting = made.propose_adapter(loads=False)
        [late] = await made.submit("b", parameters=STYLED, settle=settle)
        with pytest.raises(UnsupportedRequest):
            _ = [event async for event in late.follow()]
        made.fakes.with_run("a")[0].lose()
        await settled()
        assert not waiting.done()
        assert begun.state is State.RUNNING
        made.fakes.of(begun.group).free.set()
        await waiting
        await settled()
        assert made.fakes.of(0).adapters == made.fakes.of(1).adapters == []


async def test_a_group_lost_again_and_again_rests_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other serves all the while."""
    async with running(monkeypatch, tmp_path, crash_loop_losses=2, crash_loop_window=1.0) as made:
        made.fakes.of(1).lose()
        await settled()
        made.fakes.of(1).lose()
        await settled()
        starts = len(made.fakes.made)
        assert made.groups.serving == {0}
        await made.submit("a")
        assert made.fakes.of(0).runs == ["a"]
        async with asyncio.timeout(10):
            while made.groups.serving != {0, 1}:  # noqa: ASYNC110 (of the fleet)
                await asyncio.sleep(0.05)
        assert len(made.fakes.made) == starts + 1


async def test_it_ends_when_all_groups_are_lost_again_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever runs the service starts it again."""
    async with running(monkeypatch, tmp_path, crash_loop_losses=1, crash_loop_window=60.0) as made:
        made.fakes.of(0).lose()
        await settled()
        assert not made.task.done()
        made.fakes.of(1).lose()
        with pytest.raises(RanksLost):
            await made.task


async def test_a_first_start_that_fails_ends_it_as_with_one_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything has served, the ranks of the first group are all that is known."""
    fakes = Fakes()
    fakes.load_failures[0] = LOST
    async with running(monkeypatch, tmp_path, fakes) as made:
        with pytest.raises(RanksLost):
            await made.task
        assert len(fakes.made) == 1


async def test_others_that_are_lost_at_their_first_start_are_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first serves; the loss costs no more than with any other start."""
    fakes = Fakes()
    fakes.start_failures[2] = LOST
    async with running(monkeypatch, tmp_path, fakes) as made:
        assert made.groups.serving == {0, 1}
        assert made.restarts == [(1, RestartCause.DIED)]


async def test_a_drain_waits_for_what_runs_and_for_nothing_that_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Idle groups stay until nothing can come back to them."""
    async with running(monkeypatch, tmp_path, groups=3) as made:
        made.fakes.loads_at_once = False
        made.fakes.of(2).lose()
        await settled()
        await made.submit("a")
        busy, other = made.fakes.with_run("a")
        made.groups.drain()
        await settled()
        assert made.groups.serving == {0, 1}
        busy.lose()
        await settled()
        assert other.runs == ["a"]
        other.free.set()
        async with asyncio.timeout(10):
            await made.task
        assert all(fake.gone for fake in made.fakes.made)


async def test_a_reload_waits_while_no_other_group_would_serve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that loads is on its way: the change has its turn once that serves."""
    async with running(monkeypatch, tmp_path) as made:
        made.fakes.loads_at_once = False
        made.fakes.of(1).lose()
        await settled()
        _, waiting = made.propose(TILED)
        await settled()
        assert made.groups.serving == {0}
        made.fakes.of(1).loaded.set()
        await settled()
        assert len(made.groups.serving) == 1
        made.fakes.made[-1].loaded.set()
        await waiting
