"""The live picture of a generation on a terminal; the one module, with `info`, that needs rich."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ditcast.v1.generation_pb2 import CacheDecision, GenerationEvent, StepCompleted
from ditcast_client.report import (
    decision_word,
    parameters_text,
    queued_text,
    restarted_text,
    summary,
    warning_text,
)
from ditcast_client.result import Result
from ditcast_client.units import bytes_text

Decision: TypeAlias = CacheDecision.ValueType


@dataclass(frozen=True, slots=True)
class _Look:
    """How a kind of step looks; the glyphs differ too, for eyes and terminals without colours."""

    glyph: str
    ascii: str
    style: str


_LOOKS: Final = {
    CacheDecision.CACHE_DECISION_COMPUTED: _Look("█", "#", "cyan"),
    CacheDecision.CACHE_DECISION_CACHED: _Look("▒", "=", "green"),
    CacheDecision.CACHE_DECISION_PRUNED: _Look("░", "-", "magenta"),
}
_AHEAD: Final = _Look("·", ".", "bright_black")
_MAX_CELLS_PER_STEP: Final = 3


class StepBar:
    """A bar of equal segments, one a step, in the look of what the cache did at it.

    Where a line has fewer cells than there are steps, a cell stands for several steps and shows
    the kind that most of them were.
    """

    def __init__(self, total_steps: int, decisions: Sequence[Decision]) -> None:
        self._total_steps = total_steps
        self._decisions = decisions

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the bar on one line."""
        for look, cells in groupby(self._cells(options.max_width)):
            glyph = look.ascii if options.ascii_only else look.glyph
            yield Segment(glyph * len(list(cells)), Style.parse(look.style))
        yield Segment.line()

    def _cells(self, width: int) -> Iterator[_Look]:
        per_step = min(width // max(self._total_steps, 1), _MAX_CELLS_PER_STEP)
        if per_step:
            for step in range(self._total_steps):
                yield from [self._look(step, step + 1)] * per_step
            return
        for cell in range(width):
            first = cell * self._total_steps // width
            yield self._look(first, max((cell + 1) * self._total_steps // width, first + 1))

    def _look(self, first: int, last: int) -> _Look:
        """Give the look of the steps from `first` (from 0) to before `last`."""
        seen = Counter(self._decisions[first:last])
        return _LOOKS.get(seen.most_common(1)[0][0], _AHEAD) if seen else _AHEAD


class TerminalView:
    """Shows a generation as it goes: what happens, how long it takes yet, and the bar of steps."""

    def __init__(
        self, console: Console, address: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._clock = clock
        self._phase = f"waiting for {address}"
        self._total_steps = 0
        self._decisions: list[Decision] = []
        self._ends_at: float | None = None
        self._live = Live(
            get_renderable=self.render, console=console, refresh_per_second=8, transient=True
        )

    @classmethod
    def on_stdout(cls, address: str) -> Self:
        """Give a view for the terminal that the standard output is."""
        return cls(Console(highlight=False), address)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, event: GenerationEvent) -> None:
        """Take in an event; warnings stay on the screen above the bar."""
        match event.WhichOneof("kind"):
            case "queued":
                self._phase = queued_text(event.queued)
            case "started":
                parameters = event.started.parameters
                self._total_steps = parameters.num_inference_steps
                self._phase = f"preparing {parameters_text(parameters)}"
            case "step_completed":
                self._take_step(event.step_completed)
            case "restarted":
                self._decisions.clear()
                self._phase = "waiting for new ranks"
                self._note("begun again", restarted_text(event.restarted))
            case "warning":
                self._note("warning", warning_text(event.warning))
            case "output_chunk":
                chunk = event.output_chunk
                received = chunk.offset + len(chunk.data)
                self._phase = (
                    f"receiving output {chunk.output_index}: "
                    f"{bytes_text(received)} of {bytes_text(chunk.total_bytes)}"
                )
        self._live.refresh()

    def finish(self, result: Result, paths: Sequence[Path]) -> None:
        """Leave the whole bar and the summary on the screen."""
        self._live.stop()
        if self._decisions:
            self._console.print(StepBar(self._total_steps, self._decisions))
        table = Table.grid(padding=(0, 2))
        for label, text in summary(result, paths):
            table.add_row(Text(label, style="bold"), Text(text, overflow="fold"))
        self._console.print(table)

    def render(self) -> Group:
        """Give the picture of this moment."""
        headline = Text(self._phase, no_wrap=True, overflow="ellipsis")
        if self._ends_at is not None:
            headline.append(f", {max(self._ends_at - self._clock(), 0.0):.1f} s left")
        headline.append_text(self._legend())
        if not self._total_steps:
            return Group(headline)
        return Group(headline, StepBar(self._total_steps, self._decisions))

    def _take_step(self, step: StepCompleted) -> None:
        self._total_steps = step.total_steps
        self._decisions.append(step.cache_decision)
        done = step.step == step.total_steps
        self._phase = "decoding" if done else f"step {step.step} of {step.total_steps}"
        self._ends_at = None
        if step.HasField("estimated_remaining") and not done:
            remaining = step.estimated_remaining.ToTimedelta().total_seconds()
            self._ends_at = self._clock() + remaining

    def _legend(self) -> Text:
        counts = Counter(self._decisions)
        legend = Text()
        for decision, look in _LOOKS.items():
            if counts[decision]:
                legend.append(f"  {counts[decision]} {decision_word(decision)}", look.style)
        return legend

    def _note(self, label: str, text: str) -> None:
        self._console.print(Text(f"{label}: ", style="yellow").append(text, style="default"))
