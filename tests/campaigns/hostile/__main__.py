"""`python -m tests.campaigns.hostile --requests 20000 --seed 1`: hostile requests, counted.

Serves the embedded model and, for one request in four, a pipeline of it that takes pictures; shows
how far it is and prints how calls ended; with `--store` that is written as hostile.md and .json.
Exit codes: 0 all promises were kept, 1 one was not; the smallest burst that broke it is printed.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from tests.campaigns.hostile import campaign, report
from tests.campaigns.hostile.targets import PICTURES, STARTER, Target, goes_on, served

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
_OF_PICTURES = 4
"""One request in so many goes to the pipeline that takes pictures."""


def main(arguments: list[str]) -> int:
    """Run the campaign."""
    asked = _parser().parse_args(arguments)
    console = Console(stderr=True)
    console.print(f"seed {asked.seed}")
    pictures = asked.requests // _OF_PICTURES
    shares = ((STARTER, asked.requests - pictures), (PICTURES, pictures))
    found: dict[str, campaign.Counts] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for target, requests in shares:
                found[target.name] = _run(console, Path(folder), target, requests, asked.seed)
    except campaign.BrokenPromise as broken:
        console.print(f"[red]a promise was broken[/red] (seed {asked.seed})")
        console.print(str(broken), markup=False)
        return 1
    text = report.markdown(found, asked.requests, asked.seed)
    Console().print(text, markup=False, soft_wrap=True)
    if asked.store:
        report.store(text, found, asked.seed, asked.store)
    return 0


def _run(
    console: Console, folder: Path, target: Target, requests: int, seed: int
) -> campaign.Counts:
    """Send a target's share, and hold its server to going on."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with served(folder, target) as server, Progress(*columns, console=console) as progress:
        bar = progress.add_task(target.name, total=requests)

        def show(counts: campaign.Counts) -> None:
            progress.update(bar, completed=counts.requests)

        ranks = [rank.pid for rank in server.ranks()]
        counts = campaign.run(server.address, target.sound, requests, seed, show)
        goes_on(server, target, ranks)
        return counts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.hostile", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="replays a campaign")
    parser.add_argument(
        "--store", type=Path, nargs="?", const=RESULTS, help="folder (default: benchmarks/results)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
