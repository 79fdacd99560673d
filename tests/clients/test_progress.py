"""The progress bar, drawn on a recorded terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.segment import Segment
from tests.clients.scripted import (
    CACHED,
    COMPUTED,
    DECISIONS,
    PRUNED,
    queued,
    started,
    step,
    steps,
    success,
)

from ditcast.v1.generation_pb2 import (
    CacheDecision,
    GenerationEvent,
    Restarted,
    Warning,  # noqa: A004  # the contract's word
)
from ditcast_client.progress import StepBar, TerminalView
from ditcast_client.result import EventRecord


def terminal(width: int = 80) -> Console:
    """Give a terminal that is recorded."""
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=width,
        record=True,
        highlight=False,
    )


def segments(bar: StepBar, width: int = 80) -> list[Segment]:
    """Draw a bar and give its segments, without the end of the line."""
    return [segment for segment in terminal(width).render(bar) if segment.text != "\n"]


def test_kinds_of_steps_differ_in_colour_and_glyph() -> None:
    """Computed, cached, pruned and coming steps are told apart with and without colours."""
    drawn = segments(StepBar(4, [COMPUTED, CACHED, PRUNED]))
    assert len(drawn) == 4
    assert len({segment.style for segment in drawn}) == 4
    assert len({segment.text for segment in drawn}) == 4


def test_each_step_has_a_segment_of_its_own_length() -> None:
    """The bar shows the steps in order, each as long as any other."""
    drawn = segments(StepBar(5, DECISIONS))
    assert "".join(segment.text for segment in drawn) == "██████▒▒▒███▒▒▒"


@given(
    st.integers(0, 300).flatmap(
        lambda total: st.tuples(
            st.just(total),
            st.lists(st.sampled_from(CacheDecision.values()), max_size=total),
            st.integers(10, 120),
        )
    )
)
def test_bar_fits_its_line(case: tuple[int, list[CacheDecision.ValueType], int]) -> None:
    """However many steps there are, and on however narrow a terminal, the bar is one line."""
    total, decisions, width = case
    assert (
        sum(segment.cell_length for segment in segments(StepBar(total, decisions), width)) <= width
    )


def test_more_steps_than_cells_show_the_most_frequent_kind() -> None:
    """Where a cell stands for several steps it shows what most of them were."""
    drawn = segments(StepBar(30, [COMPUTED] * 10 + [CACHED, CACHED, COMPUTED] * 5), width=10)
    assert "".join(segment.text for segment in drawn) == "███▒▒▒▒▒█·"


def screen(view: TerminalView, console: Console) -> str:
    """Give what the view shows at this moment, as text."""
    with console.capture() as capture:
        console.print(view.render())
    return Console(file=io.StringIO()).render_str(capture.get()).plain


@pytest.mark.parametrize(
    ("events", "shows"),
    [
        ([], "waiting for host:1"),
        ([queued(2)], "queued: 2 before this one"),
        ([queued(), started()], "preparing 128x128, 5 steps, seed 7"),
        ([queued(), started(), *steps()[:3]], "step 3 of 5, 0.2 s left"),
        ([queued(), started(), *steps()[:3]], "2 computed"),
        ([queued(), started(), *steps()[:3]], "1 cached"),
        ([queued(), started(), *steps()], "decoding"),
        (success(b"x" * 2500)[:-2], "receiving output 0: 2.0 KiB of 2.4 KiB"),
    ],
)
def test_headline_says_what_happens(events: list[GenerationEvent], shows: str) -> None:
    """The line above the bar tells the place in the queue, the step, what is left, the counts."""
    console = terminal()
    view = TerminalView(console, "host:1", clock=lambda: 100.0)
    for event in events:
        view.show(event)
    assert shows in " ".join(console.export_text(clear=True).split()) + screen(view, console)


def test_remaining_time_runs_down_between_steps() -> None:
    """The estimate of the last step goes on counting while the next one takes its time."""
    now = [100.0]
    console = terminal()
    view = TerminalView(console, "host:1", clock=lambda: now[0])
    view.show(step(1, total=50))
    assert "5.9 s left" in screen(view, console)
    now[0] += 2
    assert "3.9 s left" in screen(view, console)
    now[0] += 20
    assert "0.0 s left" in screen(view, console)


def test_restart_begins_the_bar_anew_and_says_why() -> None:
    """After lost ranks the steps count from 1 again."""
    console = terminal()
    view = TerminalView(console, "host:1")
    again = Restarted(attempt=2, max_attempts=3, reason="rank 1 died")
    for event in [queued(), started(), *steps()[:3], GenerationEvent(restarted=again)]:
        view.show(event)
    assert "begun again: rank 1 died (run 2 of 3)" in console.export_text()
    assert "computed" not in screen(view, console)


def test_warning_stays_on_the_screen() -> None:
    """A warning is printed above the bar, as text and not as markup."""
    console = terminal()
    with TerminalView(console, "host:1") as view:
        warning = Warning(field="guidance_scale", message="ignored [red]here[/red]")
        view.show(GenerationEvent(warning=warning))
    assert "warning: guidance_scale: ignored [red]here[/red]" in console.export_text()


def test_end_leaves_bar_and_summary() -> None:
    """In the end the whole bar stands on the screen, with where the picture lies and the rest."""
    console = terminal()
    record = EventRecord(validate_only=False)
    with TerminalView(console, "host:1") as view:
        for event in success(b"picture"):
            view.show(event)
            record.take(event)
        view.finish(record.result("id"), [Path("out/cup.png")])
    shown = " ".join(console.export_text().split())
    assert "██████▒▒▒███▒▒▒" in shown
    for part in ("out/cup.png (image/png, 7 bytes)", "5: 3 computed, 2 cached", "time 700 ms"):
        assert part in shown
