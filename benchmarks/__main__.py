"""`python -m benchmarks [part ...]`: measure, print a table, store JSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import changes, fixed, latency, machine, previews, ratio, report, steps
from benchmarks.figures import Figure
from benchmarks.plan import QUICK, Plan, Tick
from benchmarks.processes import DirectPipeline, direct_pipeline, serving
from ditcast_client import Client

PARTS = ("steps", "fixed", "ratio", "previews", "latency", "changes")
_PIPED_WIDTH = 120

LATEST = Path(__file__).parent / "results" / "latest.json"


class _Suite:
    """The parts that were chosen, over servers that they share."""

    def __init__(self, parts: Sequence[str], plan: Plan, progress: Progress) -> None:
        self._parts = parts
        self._plan = plan
        self._progress = progress

    async def run(self) -> list[Figure]:
        """Measure all parts, never two at a time."""
        figures: list[Figure] = []
        if "steps" in self._parts:
            figures += await steps.measure(self._plan, self._tick("steps", steps.ticks(self._plan)))
        if self._served_parts:
            figures += await self._served()
        for world_size in self._plan.world_sizes:
            if "latency" in self._parts and world_size > 1:
                async with self._server(world_size) as client:
                    figures += await self._latency(client, world_size)
        if "changes" in self._parts:
            for world_size in self._plan.world_sizes:
                tick = self._tick(f"changes, world size {world_size}", changes.ticks(self._plan))
                figures += await changes.measure(self._plan, world_size, tick)
        return figures

    @property
    def _served_parts(self) -> list[str]:
        return [part for part in self._parts if part not in {"steps", "changes"}]

    async def _served(self) -> list[Figure]:
        """Run what needs a server of one rank, and the direct pipeline where it is compared."""
        figures: list[Figure] = []
        async with contextlib.AsyncExitStack() as stack:
            client, pipeline = await self._start(stack)
            if "fixed" in self._parts:
                tick = self._tick("fixed", self._plan.fixed)
                figures += await fixed.measure(client, self._plan, tick)
            if pipeline is not None:
                tick = self._tick("ratio", 2 * self._plan.ratio_pairs)
                figures += await ratio.measure(client, pipeline, self._plan, tick)
            if "previews" in self._parts:
                tick = self._tick("previews", self._plan.preview_pairs)
                figures += await previews.measure(client, self._plan, tick)
            if "latency" in self._parts:
                figures += await self._latency(client, 1)
        return figures

    async def _start(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[Client, DirectPipeline | None]:
        """Start both at the same time: loading is not what is measured."""
        server = stack.enter_async_context(self._server(1))
        if "ratio" not in self._parts:
            return await server, None
        return await asyncio.gather(server, stack.enter_async_context(direct_pipeline()))

    @contextlib.asynccontextmanager
    async def _server(self, world_size: int) -> AsyncIterator[Client]:
        task = self._progress.add_task(f"starting a server, world size {world_size}", total=None)
        async with serving(world_size) as address:
            self._progress.remove_task(task)
            async with Client(address) as client:
                yield client

    async def _latency(self, client: Client, world_size: int) -> list[Figure]:
        tick = self._tick(f"latency, world size {world_size}", latency.ticks(self._plan))
        return await latency.measure(client, self._plan, world_size, tick)

    def _tick(self, name: str, total: int) -> Tick:
        task = self._progress.add_task(name, total=total)
        return lambda: self._progress.advance(task)


def main() -> None:
    """Run the suite from the command line."""
    arguments = _parser().parse_args()
    parts = [part for part in PARTS if part in (arguments.parts or PARTS)]
    console = Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)
    load_before = machine.load()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as progress:
        plan = QUICK if arguments.quick else Plan()
        figures = asyncio.run(_Suite(parts, plan, progress).run())
    facts: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "parts": parts,
        "quick": arguments.quick,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "load_average": {"before": load_before, "after": machine.load()},
    }
    report.write(arguments.output, facts, figures)
    report.show(console, figures)
    console.print(
        f"Load averages before: {load_before}. Stored in:", arguments.output, soft_wrap=True
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=(*PARTS, []), metavar="part", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few measurements of each: shows that it works"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=LATEST,
        help="where the JSON goes, and a Markdown table beside it (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    main()
