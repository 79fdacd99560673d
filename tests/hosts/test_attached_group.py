"""A group of ranks that attached: told what to load, watched, and let go of; never killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.hosts.attaching import Post, place, post
from tests.service.fakes import FACTS

from ditcast_runtime.attach import Attached, receive_launch
from ditcast_runtime.channel import ChannelClosed, RankChannel
from ditcast_runtime.config import EngineConfig, first_configuration
from ditcast_runtime.group import Group, GroupLost
from ditcast_runtime.launches import Launch, TorchrunStore
from ditcast_runtime.messages import (
    Facts,
    Ready,
    Shutdown,
)

EPOCH = 4


@dataclass
class Attachment:
    """One rank as it stands after its launch."""

    attached: Attached
    channel: RankChannel
    launch: Launch

    def leave(self) -> None:
        """End, as the service sees it."""
        self.attached.end.close()


@dataclass
class Started:
    """A group that serves, and its ranks in the launcher's order."""

    group: Group
    facts: Facts
    ranks: list[Attachment]
    losses: list[str]


async def attach(here: Post, rank: int, address: str) -> Attachment:
    """Be a rank up to the end of its load."""
    attached = await here.attach(rank, by=address)
    channel, launch = await asyncio.to_thread(receive_launch, attached, place(rank), 3)
    channel.send(Ready(epoch=launch.epoch, rank=launch.rank, facts=FACTS, seconds=0.1))
    return Attachment(attached, channel, launch)


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Started]:
    """Start a group; its rank 0 is what the launcher calls 1."""
    config = EngineConfig(world_size=2, shutdown_timeout=20.0)
    losses: list[str] = []
    async with post(tmp_path) as here:
        group = Group(
            config,
            first_configuration(config),
            EPOCH,
            tmp_path,
            json_logs=True,
            log_level="error",
            on_progress=lambda _: None,
            on_lost=lambda: losses.append("lost"),
            attachments=here.attachments,
        )
        starting = asyncio.create_task(group.start())
        ranks = await asyncio.gather(attach(here, 0, here.tcp), attach(here, 1, here.unix))
        yield Started(group, await starting, list(ranks), losses)
        await group.kill()
        for rank in ranks:
            rank.leave()


async def closed(rank: Attachment) -> list[object]:
    """Read what a rank is told until its channel is closed."""
    told: list[object] = []
    while True:
        try:
            received = await asyncio.to_thread(rank.channel.receive, 20.0)
        except ChannelClosed:
            return told
        assert received is not None
        told.append(received.command)


async def test_each_rank_is_told_its_place_and_keeps_what_only_it_knows(started: Started) -> None:
    """Which rank of the group it is comes from the service; device and threads from its host."""
    first, second = (rank.launch for rank in started.ranks)
    assert (first.rank, second.rank) == (1, 0)
    assert (first.local_rank, first.threads) == (0, 3)
    assert isinstance(first.store, TorchrunStore)
    assert first.store == second.store
    assert first.store.prefix.endswith(f"/{EPOCH}")
    assert (first.store.address, first.store.port) == ("127.0.0.1", 1)
    assert started.facts == FACTS


async def test_a_killed_group_is_let_go_of(started: Started) -> None:
    """The channels close without a word: the ranks leave by themselves, and come again."""
    await started.group.kill()
    assert [await closed(rank) for rank in started.ranks] == [[], []]


async def test_making_way_tells_nobody_to_leave_for_good(started: Started) -> None:
    """After a Shutdown they would exit with 0, and nobody would start them again."""
    await started.group.make_way()
    assert [await closed(rank) for rank in started.ranks] == [[], []]


async def test_a_stopped_group_is_told_and_waited_for(started: Started) -> None:
    """Rank 0 passes it on; the service waits until all have closed their channels."""
    stopping = asyncio.create_task(started.group.stop())
    received = await asyncio.to_thread(started.ranks[1].channel.receive, 20.0)
    assert received is not None
    assert received.command == Shutdown(epoch=EPOCH)
    started.ranks[0].leave()
    await asyncio.sleep(0.05)
    assert not stopping.done()
    started.ranks[1].leave()
    await stopping


async def test_a_rank_that_leaves_loses_the_group(started: Started) -> None:
    """What is known of it stands in the report: where it came from, not how its process ended."""
    started.ranks[0].leave()
    with pytest.raises(GroupLost, match="rank 1 closed its channel: end of file"):
        await started.group._next()
    assert started.losses == ["lost"]
    report = await started.group.examine()
    zero, one = report.ranks
    assert (zero.host, zero.ended) == ("", "its channel was open")
    assert one.host.startswith("127.0.0.1:")
    assert one.ended == "its channel closed"
