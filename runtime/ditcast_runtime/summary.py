"""One line about each generation, for lists."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ditcast_runtime.accepted import Generation
from ditcast_runtime.events import Started
from ditcast_runtime.generation import Priority, State


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Where a generation is in its life; None: not yet, or no longer."""

    request_id: str
    serial: int
    """Grows with each accepted generation of the process."""
    state: State
    priority: Priority
    created_at: datetime
    started_at: datetime | None
    """Of the first run."""
    ended_at: datetime | None
    expires_at: datetime | None
    step: int
    """Steps done in the present run."""
    total_steps: int
    attempt: int
    """Which run this is, from 1; 0: not started."""
    position: int | None
    """Place in the queue, 0: next."""
    revision: int
    """Of the configuration that it runs or ran with; 0: not started."""
    readers: int


def summarize(generation: Generation, position: int | None, retention: float) -> Summary:
    """Say where a generation is, which has its place in the queue, if it waits there."""
    events = generation.log
    started_at, ended_at = events.time_of_first(Started), events.ended_at
    steps = generation.steps
    total = steps[-1].total_steps if steps else generation.parameters.num_inference_steps
    return Summary(
        request_id=generation.request_id,
        serial=generation.serial,
        state=generation.state,
        priority=generation.submission.priority,
        created_at=generation.created_at,
        started_at=started_at,
        ended_at=ended_at,
        expires_at=ended_at and ended_at + timedelta(seconds=retention),
        step=len(steps),
        total_steps=total,
        attempt=generation.attempt if started_at else 0,
        position=position,
        revision=generation.revision if started_at else 0,
        readers=generation.readers,
    )
