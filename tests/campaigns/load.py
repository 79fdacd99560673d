"""The load campaign: many streams at a time, no event lost, and how late events come.

`python -m tests.campaigns.load --streams 200` runs it, prints the figures and leaves exit code 1 if
something was lost; `--store` keeps it for `benchmarks/RELIABILITY.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from tests.campaigns import document
from tests.campaigns.load_report import Delays, Report, delays, markdown
from tests.campaigns.outcome import Followed
from tests.campaigns.progress import progress
from tests.distributed.generations import small
from tests.distributed.servers import Server, serve

from ditcast_client import Client, DitcastError, Generation

STEPS = 8
SHARED_STEPS = 40
"""Of the one generation that all streams watch."""

Step = tuple[str, int]
"""A step, by the generation's id and its number."""


@dataclass(slots=True)
class Reader:
    """One stream, and when the events of its steps came, by the time of day."""

    generation: Generation
    problem: str = ""
    came: list[tuple[Step, float]] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> None:
        """Read to the end; what is not whole is a problem."""
        followed = Followed()
        try:
            async for event in self.generation:
                followed.take(event)
                self.begun.set()
                if event.HasField("step_completed"):
                    step = (event.request_id, event.step_completed.step)
                    self.came.append((step, time.time()))
            await self.generation.result()
        except DitcastError as error:
            self.problem = str(error)
        self.problem = self.problem or followed.problem


async def own_streams(client: Client, count: int, tick: Callable[[], None]) -> list[Reader]:
    """Have so many generations at once, each with a stream of its own."""
    readers = [
        Reader(client.generate(**small(seed=seed, num_inference_steps=STEPS)))
        for seed in range(count)
    ]
    return await _read(readers, STEPS, tick)


async def shared_stream(client: Client, count: int, tick: Callable[[], None]) -> list[Reader]:
    """Have so many streams of one generation: each step is an event in all of them at once."""
    asked = client.generate(**small(num_inference_steps=SHARED_STEPS, request_id="shared"))
    others = [client.watch("shared") for _ in range(count - 1)]
    first = Reader(asked)
    reading = asyncio.create_task(first.read())
    # Nobody can watch what the server does not know yet.
    await first.begun.wait()
    readers = await _read([Reader(other) for other in others], SHARED_STEPS, tick)
    await reading
    return [first, *readers]


async def _read(readers: list[Reader], steps: int, tick: Callable[[], None]) -> list[Reader]:
    async def one(reader: Reader) -> None:
        await reader.read()
        if not reader.problem and [step for (_, step), _ in reader.came] != [*range(1, steps + 1)]:
            reader.problem = "steps are missing"
        tick()

    await asyncio.gather(*map(one, readers))
    return readers


def _late(server: Server, readers: list[Reader]) -> Delays:
    """Compare when events came with when the ranks were through with the steps."""
    ended: dict[Step, float] = {}
    for row in server.step_times.read_text("utf-8").splitlines():
        request_id, step, when = row.split()
        ended[request_id, int(step)] = float(when)
    return delays([when - ended[step] for reader in readers for step, when in reader.came])


async def run(folder: Path, generations: int, streams: int, tick: Callable[[], None]) -> Report:
    """Run it at a server of one rank, whose steps leave notes of when they ended."""
    flags = ("--queue-capacity", str(generations), "--log-level", "warning")
    server = await asyncio.to_thread(lambda: serve(folder, *flags, faults=True))
    try:
        async with server.client() as client:
            own = await own_streams(client, generations, tick)
            watching = await shared_stream(client, streams, tick)
        report = Report(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            generations=generations,
            streams=streams,
            own=_late(server, own),
            shared=_late(server, watching),
            problems=[each.problem for each in (*own, *watching) if each.problem],
        )
        await asyncio.to_thread(server.stop)
    finally:
        server.clear_away()
    return report


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.load", description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--generations", type=int, help="at once; as many as streams by default")
    parser.add_argument("--store", action="store_true", help="keep it, and write the document anew")
    asked = parser.parse_args()
    generations, streams = asked.generations or asked.streams, asked.streams
    total = generations + streams - 1
    with tempfile.TemporaryDirectory() as folder, progress("streams", total) as tick:
        report = asyncio.run(run(Path(folder), generations, streams, tick))
    Console().print(markdown([report]), markup=False)
    if asked.store:
        document.store("load", report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
