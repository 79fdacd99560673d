"""How a Tune is shown: lines, JSON for programs, or a bar on a terminal; at the end a table."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Self

from google.protobuf.json_format import MessageToDict

from ditcast.v1.tuning_pb2 import TuneCompleted, TuneEvent, TuneProgress
from ditcast_client.cache_names import cache_name
from ditcast_client.units import seconds_text
from ditcast_client.views import NoFrame

if TYPE_CHECKING:  # It takes a tenth of a second that a pipe has no use for.
    from rich.progress import Progress, TaskID


class TuneView(AbstractContextManager["TuneView"], Protocol):
    """Shows one Tune; entered before the first event, left after the last."""

    def show(self, event: TuneEvent) -> None:
        """Show an event."""

    def finish(self, completed: TuneCompleted) -> None:
        """Show what came of it."""


class JsonTuneView(NoFrame):
    """A line of protobuf JSON for each event, and nothing else."""

    def show(self, event: TuneEvent) -> None:
        """Print the event at once."""
        fields = MessageToDict(event, always_print_fields_with_no_presence=True)
        print(json.dumps(fields), flush=True)

    def finish(self, completed: TuneCompleted) -> None:
        """Say nothing more: the last event has it all."""


class PlainTuneView(NoFrame):
    """A line for each comparison, then the table."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def show(self, event: TuneEvent) -> None:
        """Print the event's line at once, for whoever follows at the other end of a pipe."""
        self._learn(event)
        if line := self._line(event):
            print(line, flush=True)

    def finish(self, completed: TuneCompleted) -> None:
        """Print the table, and what is recommended."""
        _print_table(completed)
        print(_verdict(completed))

    def _learn(self, event: TuneEvent) -> None:
        if event.HasField("started"):
            self._names = list(map(cache_name, event.started.candidates))

    def _line(self, event: TuneEvent) -> str | None:
        match event.WhichOneof("kind"):
            case "started":
                count = event.started.generations
                return f"{len(self._names)} candidates, at most {count} generations"
            case "comparison":
                found = event.comparison
                line = (
                    f"prompt {found.prompt_index + 1}, {self._names[found.candidate_index]}: "
                    f"{found.cached_steps} of {found.total_steps} steps cached, "
                    f"{found.psnr:.1f} dB, SSIM {found.ssim:.4f}, {found.time_ratio:.2f} of "
                    f"{seconds_text(found.uncached_denoise.ToTimedelta().total_seconds())}"
                )
                return f"{line}, dropped" if found.dropped else line
            case _:
                return None


class TerminalTuneView(PlainTuneView):
    """The same, over a bar of all steps of all generations."""

    def __init__(self) -> None:
        super().__init__()
        from rich.progress import Progress  # noqa: PLC0415 (see above)

        self._progress: Progress = Progress(transient=True)
        self._task: TaskID = self._progress.add_task("waiting for the first step", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: TuneEvent) -> None:
        """Print the event's line above the bar, or move the bar."""
        self._learn(event)
        if event.HasField("progress"):
            self._move(event.progress)
        elif line := self._line(event):
            self._progress.console.print(line, highlight=False)

    def finish(self, completed: TuneCompleted) -> None:
        """Take the bar away."""
        self._progress.stop()
        super().finish(completed)

    def _move(self, progress: TuneProgress) -> None:
        name = "without a cache"
        if progress.HasField("candidate_index"):
            name = self._names[progress.candidate_index]
        steps = progress.step / progress.total_steps if progress.total_steps else 0
        self._progress.update(
            self._task,
            description=f"prompt {progress.prompt_index + 1}, {name}",
            completed=progress.generations_done + steps,
            total=progress.generations_total,
        )


def choose_tune_view(*, as_json: bool) -> TuneView:
    """Give the view for the standard output: a progress bar only on a terminal."""
    if as_json:
        return JsonTuneView()
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return PlainTuneView()
    return TerminalTuneView()


def _print_table(completed: TuneCompleted) -> None:
    from ditcast_client.commands.tables import print_rows  # noqa: PLC0415 (rich, as above)

    columns = ("", "settings", "cached", "PSNR (worst)", "SSIM (worst)", "times as fast", "")
    print_rows(columns, [_row(completed, index) for index in range(len(completed.candidates))])


def _row(completed: TuneCompleted, index: int) -> tuple[str, ...]:
    found = completed.candidates[index]
    best = completed.HasField("recommended_index")
    notes = {
        "recommended": best and found.candidate_index == completed.recommended_index,
        "front": found.on_pareto_front,
        "dropped": found.dropped,
    }
    return (
        str(found.candidate_index + 1),
        cache_name(found.cache),
        f"{found.cached_steps:.1f}",
        f"{found.psnr:.1f} ({found.worst_psnr:.1f})",
        f"{found.ssim:.4f} ({found.worst_ssim:.4f})",
        f"{1 / found.time_ratio:.2f}",
        ", ".join(note for note, holds in notes.items() if holds),
    )


def _verdict(completed: TuneCompleted) -> str:
    if not completed.HasField("recommended_index"):
        return "no candidate is fast and near enough: lower --target-psnr, or name others"
    return f"recommended: {completed.recommended_index + 1}"
