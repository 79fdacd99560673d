"""The progress bar of a campaign, on the error output."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar for the length of a block; call what it gives once for each of `total`."""
    # Told to end, a campaign clears its server away as it does at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Clients that come back say so, once for each connection that a campaign cuts.
    logging.getLogger("ditcast_client").setLevel(logging.ERROR)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda: bar.advance(task)
