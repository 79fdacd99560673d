"""The campaign on steadiness: many generations of all sorts, and whether anything grows.

`python -m tests.campaigns.steadiness --generations 1000 --world-size 2` runs one, prints its
figures and leaves exit code 1 if something grows; `--store` keeps it, with its plot.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from tests.campaigns import document, model, plan, references, remains
from tests.campaigns.clients import Actor, Follower
from tests.campaigns.outcome import named
from tests.campaigns.place import Place
from tests.campaigns.progress import progress
from tests.campaigns.samples import Sample, collect
from tests.campaigns.steadiness_report import Report, measure, plot, show
from tests.distributed.servers import Server, serve

WARM_UP = 0.2
"""The part of the generations that is not measured: allocators and caches fill in it."""
FLAGS = ("--retention", str(remains.RETENTION_SECONDS), "--log-level", "warning")


class Campaign:
    """One campaign at one server, which it ends."""

    def __init__(self, server: Server, seed: int, count: int, world_size: int) -> None:
        self._server = server
        self._seed = seed
        self._count = count
        self._world_size = world_size
        self.samples: list[Sample] = []

    async def run(self, tick: Callable[[], None]) -> Report:
        """Have clients at work until there were so many generations; then look at the samples."""
        began = time.monotonic()
        place = Place(self._server)
        async with self._server.client() as client:
            follower = Follower(place, await references.make(client))
        before = await remains.settled(self._server)
        await self._work(place, follower, tick)
        after = await remains.settled(self._server, before)
        problems = remains.grown(before, after)
        problems += [
            f"{each.request_id}: {each.problem}" for each in follower.outcomes if each.problem
        ]
        await asyncio.to_thread(self._server.stop)
        return Report(
            seed=self._seed,
            world_size=self._world_size,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - began),
            generations=_accepted(follower),
            warm_up=round(WARM_UP * self._count),
            acts=dict(Counter(each.act for each in follower.outcomes)),
            statuses=dict(Counter(map(named, follower.outcomes))),
            figures=measure(self.samples, round(WARM_UP * self._count)),
            before=before,
            after=after,
            problems=problems,
        )

    async def _work(self, place: Place, follower: Follower, tick: Callable[[], None]) -> None:
        enough = asyncio.Event()
        sampling = asyncio.create_task(
            collect(self._server, lambda: _accepted(follower), self.samples)
        )
        async with asyncio.TaskGroup() as actors:
            for client in range(plan.CLIENTS):
                acts = plan.acts(self._seed, client)
                actors.create_task(Actor(place, follower).run(acts, enough))
            shown = 0
            while shown < self._count:
                while shown < min(self._count, _accepted(follower)):
                    shown += 1
                    tick()
                await asyncio.sleep(0.5)
            enough.set()
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling


def _accepted(follower: Follower) -> int:
    return sum(each.accepted for each in follower.outcomes)


async def run(
    folder: Path, seed: int, count: int, world_size: int, tick: Callable[[], None]
) -> tuple[Report, list[Sample]]:
    """Run a campaign at a server of its own; give the samples too."""
    flags = await asyncio.to_thread(model.flags, world_size, folder)
    server = await asyncio.to_thread(serve, folder, *FLAGS, *flags)
    try:
        campaign = Campaign(server, seed, count, world_size)
        return await campaign.run(tick), campaign.samples
    finally:
        server.clear_away()


def main() -> int:
    """Run one from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaigns.steadiness", description=__doc__
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--store", action="store_true", help="keep it, and write the document anew")
    asked = parser.parse_args()
    count, world_size = asked.generations, asked.world_size
    with tempfile.TemporaryDirectory() as folder, progress("generations", count) as tick:
        report, samples = asyncio.run(run(Path(folder), asked.seed, count, world_size, tick))
    show(Console(), report)
    if asked.store:
        name = f"steadiness-ranks-{world_size}"
        document.KEPT.mkdir(parents=True, exist_ok=True)
        plot(samples, report, document.KEPT / f"{name}.png")
        document.store(name, report)
    return 0 if report.kept else 1


if __name__ == "__main__":
    sys.exit(main())
