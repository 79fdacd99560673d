"""How a running generation is shown where no terminal is: plain lines, or JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_client.report import event_json, event_line, summary
from ditcast_client.result import Result


class View(AbstractContextManager["View"], Protocol):
    """Shows one generation; entered before the first event, left after the last."""

    def show(self, event: GenerationEvent) -> None:
        """Show an event."""

    def finish(self, result: Result, paths: Sequence[Path]) -> None:
        """Show the result, and where its outputs lie."""


class NoFrame:
    """Views that write line by line have nothing to set up and nothing to clear away."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


class PlainView(NoFrame):
    """A line for each event, then the summary."""

    def show(self, event: GenerationEvent) -> None:
        """Print the event's line at once, for whoever follows at the other end of a pipe."""
        if line := event_line(event):
            print(line, flush=True)

    def finish(self, result: Result, paths: Sequence[Path]) -> None:
        """Print the summary."""
        rows = list(summary(result, paths))
        width = max(len(label) for label, _ in rows)
        for label, text in rows:
            print(f"{label:<{width}}  {text}")


class JsonView(NoFrame):
    """A line of protobuf JSON for each event, and nothing else on the standard output."""

    def show(self, event: GenerationEvent) -> None:
        """Print the event at once."""
        print(event_json(event), flush=True)

    def finish(self, result: Result, paths: Sequence[Path]) -> None:
        """Say on the standard error where the outputs lie."""
        del result
        for path in paths:
            print(f"wrote {path}", file=sys.stderr)


def choose_view(address: str, *, as_json: bool) -> View:
    """Give the view for the standard output: a progress bar only on a terminal."""
    if as_json:
        return JsonView()
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return PlainView()
    # Only here, because rich takes a tenth of a second that a pipe has no use for.
    from ditcast_client.progress import TerminalView  # noqa: PLC0415

    return TerminalView.on_stdout(address)
