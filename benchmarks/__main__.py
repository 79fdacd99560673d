"""`python -m benchmarks [part ...]`: measure, print tables, store JSON, Markdown and plots."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import earlier, machine
from benchmarks.peers.sides import RIVALS
from benchmarks.plan import QUICK, Plan
from benchmarks.report import Report
from benchmarks.suite import PARTS, Found, Suite

_PIPED_WIDTH = 140

LATEST = Path(__file__).parent / "results" / "latest.json"


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
        found = asyncio.run(_run(Suite(parts, arguments.rivals, plan, progress)))
    facts: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "parts": parts,
        "quick": arguments.quick,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "load_average": {"before": load_before, "after": machine.load()},
    }
    report = Report(facts, found, earlier.read(arguments.against or arguments.output, facts))
    report.write(arguments.output)
    report.show(console)
    console.print(
        f"Load averages before: {load_before}. Stored in:", arguments.output, soft_wrap=True
    )


async def _run(suite: Suite) -> Found:
    """Run it; a SIGTERM ends it as Ctrl-C does, with all that it has started."""
    measuring = asyncio.ensure_future(suite.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    return await measuring


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
    parser.add_argument(
        "--against",
        type=Path,
        help="the stored run to compare with (default: the one in --output, before it is replaced)",
    )
    parser.add_argument(
        "--rivals",
        nargs="*",
        choices=RIVALS,
        default=RIVALS,
        help=f"of the part `peers`: {', '.join(RIVALS)} (default: all)",
    )
    return parser


if __name__ == "__main__":
    main()
