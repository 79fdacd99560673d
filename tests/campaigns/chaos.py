"""The chaos campaign: faults at random times under clients at work, and what came of it.

`python -m tests.campaigns.chaos --seed 1 --faults 70 --world-size 2` runs one, prints a table and
leaves exit code 1 if a promise was broken; `--store` keeps it for `benchmarks/RELIABILITY.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from tests.campaigns import document, model, plan, references, remains
from tests.campaigns.chaos_report import Report, show
from tests.campaigns.clients import Actor, Follower
from tests.campaigns.outcome import COMPLETED, named
from tests.campaigns.place import Place
from tests.campaigns.probe import Probe
from tests.campaigns.progress import progress
from tests.campaigns.strikes import Striker
from tests.distributed.servers import Server, serve

FLAGS = (
    *("--vote-timeout", "1.5"),
    *("--alive-timeout", "4"),
    *("--load-timeout", "60"),
    *("--warm-up-timeout", "60"),
    *("--first-steps-timeout", "15"),
    *("--decode-timeout", "15"),
    # Losing ranks again and again is what a campaign is for.
    *("--crash-loop-losses", "1000"),
    *("--retention", str(remains.RETENTION_SECONDS)),
)


class Campaign:
    """One campaign at one server, which it ends."""

    def __init__(self, server: Server, seed: int, count: int, world_size: int) -> None:
        self._server = server
        self._seed = seed
        self._world_size = world_size
        self._faults = plan.faults(seed, count, world_size)
        self._place = Place(server)
        self._probe = Probe(self._place)

    async def run(self, tick: Callable[[], None]) -> Report:
        """Make references, strike while clients act, and look at what is left."""
        began = time.monotonic()
        async with self._server.client() as client:
            undisturbed = await references.make(client)
        before = await remains.settled(self._server)
        follower = Follower(self._place, undisturbed)
        striker = Striker(self._place, follower)
        await self._disturb(follower, striker, tick)
        problems = [*self._place.problems, *self._probe.problems, *striker.problems]
        async with self._server.client() as client:
            if await references.make(client) != undisturbed:
                problems.append("the last service makes other bytes than the first")
        after = await remains.settled(self._server, before)
        problems += remains.grown(before, after)
        problems += await asyncio.to_thread(self._stop)
        return self._report(follower, striker, before, after, problems, time.monotonic() - began)

    async def _disturb(
        self, follower: Follower, striker: Striker, tick: Callable[[], None]
    ) -> None:
        """Strike all faults while clients are at work, then let those finish what they began."""
        enough = asyncio.Event()
        probing = asyncio.create_task(self._probe.run())
        async with asyncio.TaskGroup() as actors:
            for number in range(plan.CLIENTS):
                acts = plan.acts(self._seed, number)
                actors.create_task(Actor(self._place, follower).run(acts, enough))
            try:
                for fault in self._faults:
                    if not fault.hurries:
                        await self._place.mended()
                    await asyncio.sleep(fault.pause)
                    async with self._server.client() as client:
                        await striker.strike(fault, client)
                    tick()
                await self._place.mended()
            finally:
                enough.set()
        probing.cancel()

    def _stop(self) -> list[str]:
        try:
            self._server.stop()
        except AssertionError as broken:
            return [f"stopping: {str(broken).splitlines()[0]}"]
        return []

    def _report(
        self,
        follower: Follower,
        striker: Striker,
        before: remains.Usage,
        after: remains.Usage,
        problems: list[str],
        seconds: float,
    ) -> Report:
        outcomes = follower.outcomes
        restarted = [each for each in outcomes if each.restarts or each.resent]
        return Report(
            seed=self._seed,
            world_size=self._world_size,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds),
            faults=dict(Counter(str(fault.kind) for fault in striker.struck)),
            acts=dict(Counter(each.act for each in outcomes)),
            statuses=dict(Counter(map(named, outcomes))),
            restarted=len(restarted),
            restarted_completed=sum(each.status == COMPLETED for each in restarted),
            resent=sum(each.resent > 0 for each in outcomes),
            services=self._place.lives,
            probes_serving=self._probe.serving,
            probes_not_serving=self._probe.not_serving,
            before=before,
            after=after,
            broken=[each for each in outcomes if each.problem],
            problems=problems,
        )


async def run(
    folder: Path,
    seed: int,
    count: int,
    world_size: int,
    log_level: str,
    tick: Callable[[], None],
) -> tuple[Report, Server]:
    """Run a campaign at a server of its own; give the server too, for its log."""
    flags = await asyncio.to_thread(model.flags, world_size, folder)
    flags = (*flags, "--log-level", log_level)
    server = await asyncio.to_thread(serve, folder, *FLAGS, *flags, faults=True)
    try:
        return await Campaign(server, seed, count, world_size).run(tick), server
    finally:
        server.clear_away()


def main() -> int:
    """Run one from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=70)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--store", action="store_true", help="keep it, and write the document anew")
    parser.add_argument("--log", type=Path, help="file to leave all that the services log in")
    arguments = parser.parse_args()
    seed, count, world_size = arguments.seed, arguments.faults, arguments.world_size
    level = "info" if arguments.log else "warning"
    with tempfile.TemporaryDirectory() as folder, progress(f"faults, seed {seed}", count) as tick:
        report, server = asyncio.run(run(Path(folder), seed, count, world_size, level, tick))
        if arguments.log:
            shutil.copyfile(server.log, arguments.log)
        if not report.kept:
            print(server.tail(), file=sys.stderr)  # noqa: T201
    show(Console(), report)
    if arguments.store:
        document.store(f"chaos-ranks-{world_size}-seed-{seed}", report)
    return 0 if report.kept else 1


if __name__ == "__main__":
    sys.exit(main())
