"""How soon a caller hears of a generation, and how soon a cancel frees the ranks."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from benchmarks.figures import Figure, Subject
from benchmarks.plan import Plan, Tick
from benchmarks.processes import threads_of
from benchmarks.requests import generation
from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_client import Cancelled, Client, Generation

_LONG = 500
"""Steps of the generation that is cancelled: more than it will ever make."""

_SHORT = 2
"""Steps of the others: the fewest that the model's scheduler makes."""

_KNOWN = 6
"""Steps after which its step time is taken to be known."""


@dataclass(slots=True)
class _Followed:
    """A generation that runs while something else is measured."""

    generation: Generation
    durations: list[float] = field(default_factory=list)
    """Of the steps that were reported."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def read(self) -> None:
        """Read until it is cancelled."""
        with contextlib.suppress(Cancelled):
            async for event in self.generation:
                if event.WhichOneof("kind") == "step_completed":
                    duration = event.step_completed.step_duration.ToTimedelta()
                    async with self.changed:
                        self.durations.append(duration.total_seconds())
                        self.changed.notify_all()

    async def reach(self, steps: int) -> None:
        """Wait until so many steps were reported."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.durations) >= steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cancel:
    """What one cancel showed; times in seconds."""

    first_event: float
    """Of the generation that was sent while the other ran."""
    answer: float
    """From the cancel to its answer."""
    free: float
    """From the cancel to the `started` of the generation that waited."""
    step: float
    """Median time of a step before it."""
    further_steps: int
    """Steps that were still reported after it."""


async def measure(client: Client, plan: Plan, world_size: int, tick: Tick) -> list[Figure]:
    """Measure on one server that has nothing else to do."""
    idle = [await _first_event(client) for _ in range(plan.first_events + 1)][1:]
    tick()
    cancels = []
    for number in range(plan.cancels):
        # Evenly over the length of a step: always right after a report would be the worst case.
        cancels.append(await _cancel(client, (number + 0.5) / plan.cancels))
        tick()
    return _figures(Subject("latency", world_size, threads_of(world_size)), idle, cancels)


def ticks(plan: Plan) -> int:
    """Say how often `measure` calls its tick on one server."""
    return plan.cancels + 1


async def _first_event(client: Client) -> float:
    """Give the time from sending a request to its first event; let the generation finish."""
    made = generation(client, steps=_SHORT)
    events = aiter(made)
    began = time.perf_counter()
    await anext(events)
    seconds = time.perf_counter() - began
    async for _ in events:
        pass
    return seconds


async def _cancel(client: Client, phase: float) -> _Cancel:
    """Cancel a running generation while another waits, `phase` of a step after a report."""
    running = _Followed(generation(client, steps=_LONG))
    reading = asyncio.create_task(running.read())
    await running.reach(_KNOWN)
    waiting = generation(client, steps=_SHORT)
    events = aiter(waiting)
    sent = time.perf_counter()
    await anext(events)
    heard = time.perf_counter()
    await running.reach(len(running.durations) + 1)
    step = statistics.median(running.durations)
    await asyncio.sleep(phase * step)
    known = len(running.durations)
    began = time.perf_counter()
    started = asyncio.create_task(_started(events))
    await client.cancel(running.generation.request_id)
    answered = time.perf_counter()
    free = await started
    async for _ in events:
        pass
    await reading
    return _Cancel(
        first_event=heard - sent,
        answer=answered - began,
        free=free - began,
        step=step,
        further_steps=len(running.durations) - known,
    )


async def _started(events: AsyncIterator[GenerationEvent]) -> float:
    """Give the time at which a generation's `started` came."""
    async for event in events:
        if event.WhichOneof("kind") == "started":
            return time.perf_counter()
    raise AssertionError("a generation ended well without having started")


def _figures(subject: Subject, idle: list[float], cancels: list[_Cancel]) -> list[Figure]:
    size = subject.world_size
    return [
        subject.figure(
            f"first_event_idle_{size}",
            "Request to first event, idle server",
            "ms",
            [seconds * 1000 for seconds in idle],
        ),
        subject.figure(
            f"first_event_busy_{size}",
            "Request to first event, while another runs",
            "ms",
            [cancel.first_event * 1000 for cancel in cancels],
        ),
        subject.figure(
            f"cancel_answer_{size}",
            "Cancel to its answer",
            "ms",
            [cancel.answer * 1000 for cancel in cancels],
        ),
        subject.figure(
            f"cancel_free_steps_{size}",
            "Cancel to free ranks",
            "steps",
            [cancel.free / cancel.step for cancel in cancels],
            note="until `started` of the one that waited; cancels spread over a step: 0.5 is ideal",
        ),
        subject.figure(
            f"cancel_free_{size}",
            "Cancel to free ranks",
            "ms",
            [cancel.free * 1000 for cancel in cancels],
        ),
        subject.figure(
            f"cancel_further_steps_{size}",
            "Steps reported after a cancel",
            "steps",
            [cancel.further_steps for cancel in cancels],
        ),
    ]
