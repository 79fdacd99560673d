"""A generation's time: every moment in one stage, starts of ranks apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from ditcast_runtime.accepted import Generation
from ditcast_runtime.events import StepCompleted
from ditcast_runtime.timings import Measured, Starts, stage_text, timings_of

RUN = Measured(prepare=1.0, encode_prompt=0.5, denoise=6.0, decode=2.0, encode=1.0, previews=0.0)


def generation(accepted_at: float, started_at: float, *steps: float) -> Generation:
    """Give what the accounting looks at."""
    done = [
        StepCompleted(
            step=number,
            total_steps=len(steps),
            timestep=0.0,
            sigma=None,
            step_duration=seconds,
            estimated_remaining=0.0,
            transformers=(),
        )
        for number, seconds in enumerate(steps, start=1)
    ]
    made = SimpleNamespace(accepted_at=accepted_at, started_at=started_at, steps=done)
    return cast("Generation", made)


@pytest.fixture
def starts() -> Starts:
    """Ranks load from 10 to 20, warm up to 25, are lost at 40, load to 44 and warm up to 45."""
    made = Starts()
    made.load(10)
    made.warm_up(20)
    made.serve(25)
    made.load(40)
    made.warm_up(44)
    made.serve(45)
    return made


def test_waiting_for_ranks_is_in_no_other_stage(starts: Starts) -> None:
    """Accepted while they load, it is queued only for what is left of the wait."""
    found = timings_of(generation(12, 27), RUN, starts, 37)
    assert (found.load, found.warm_up, found.queued) == (8, 5, 2)
    stages = found.queued + found.load + found.warm_up + found.prepare + found.denoise
    assert stages + found.decode + found.encode == pytest.approx(found.total)


def test_a_loss_on_the_way_counts_as_loading(starts: Starts) -> None:
    """The second run's stages, and the start between; the lost run is in the total alone."""
    found = timings_of(generation(30, 30, 1.0, 3.0, 2.0), RUN, starts, 60)
    assert (found.load, found.warm_up, found.queued) == (4, 1, 0)
    assert found.step_median == 2.0
    assert found.encode_prompt == 0.5


def test_what_goes_on_counts_up_to_now() -> None:
    """Ranks that still load have been waited for so far."""
    made = Starts()
    made.load(10)
    assert made.waited(11, 14).load == 3
    assert made.waited(0, 5).load == 0


def test_progress_is_said_in_gibibytes() -> None:
    """With the total where it is known."""
    assert stage_text("reading", 2**29, 2**30) == "reading, 0.50 of 1.00 GiB"
    assert stage_text("downloading", 2**29, 0) == "downloading, 0.50 GiB"
    assert stage_text("warming up", 0, 0) == "warming up"
