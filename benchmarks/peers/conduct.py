"""What each side does when a client leaves, when a request is bad, and when a process is killed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.figures import Table
from benchmarks.peers.pictures import describe, digest
from benchmarks.peers.sides import Asking, Gone, Refused, Side, request
from benchmarks.peers.throughput import prompt
from benchmarks.plan import Plan, Tick

_SHORT = 2
"""Steps: the fewest that the model's scheduler makes."""
_HEAD_START_SECONDS = 0.5
_ANSWER_CHARACTERS = 160
_GIVE_UP_SECONDS = 120.0

_BAD: tuple[tuple[str, dict[str, object]], ...] = (
    ("width 100", {"width": 100}),
    ("0 steps", {"num_inference_steps": 0}),
    ("1 step, which makes this model's scheduler divide by zero", {"num_inference_steps": 1}),
    ("a field that is misspelt", {"num_inference_stepz": 4}),
    ("a number as the prompt", {"prompt": 5}),
    ("two faults: width 100, 0 steps", {"width": 100, "num_inference_steps": 0}),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of mistreatment: its table, and how a side fares."""

    title: str
    columns: tuple[str, ...]
    rows: Callable[[Side, Plan], Awaitable[Sequence[tuple[str, ...]]]]


async def table(kind: Kind, sides: Sequence[Side], plan: Plan, tick: Tick) -> Table:
    """Mistreat each side in turn."""
    rows = []
    for side in sides:
        rows += [(side.title, *row) for row in await kind.rows(side, plan)]
        tick()
    return Table(kind.title, ("server", *kind.columns), tuple(rows))


def ticks(plan: Plan) -> int:
    """Say how often `table` calls its tick for one side."""
    del plan
    return len(KINDS)


async def _leave(side: Side, plan: Plan) -> Sequence[tuple[str, ...]]:
    """Leave a long generation after its begin, and see how long the next one has to wait."""
    alone, after = [], []
    async with side.connect() as leaving, side.connect() as waiting:
        for number in range(plan.peer_leaves):
            alone.append(await _seconds(waiting, number))
            task = asyncio.create_task(leaving.ask(request(prompt(0), 0, plan.peer_long)))
            await asyncio.sleep(_HEAD_START_SECONDS)
            task.cancel()
            after.append(await _seconds(waiting, number))
            with contextlib.suppress(asyncio.CancelledError):
                await task
        whole = time.perf_counter()
        await waiting.ask(request(prompt(0), 0, plan.peer_long))
        whole = time.perf_counter() - whole
    waits = [later - usual for later, usual in zip(after, alone, strict=True)]
    span = f"{min(waits):.2f} .. {max(waits):.2f}"
    return [(f"{whole:.2f} s", f"{statistics.median(waits):.2f} s", span, str(len(waits)))]


async def _seconds(client: Asking, number: int) -> float:
    began = time.perf_counter()
    await client.ask(request(prompt(number), number, _SHORT))
    return time.perf_counter() - began


async def _send_bad(side: Side, plan: Plan) -> Sequence[tuple[str, ...]]:
    """Send what cannot be done, and see whether the next good request is answered as ever."""
    good = request(prompt(1), 1, plan.peer_steps)
    async with side.connect() as client:
        expected = digest(await client.ask(good))
    rows = []
    for words, fields in _BAD:
        async with side.connect() as client:
            said = await _said(client, request(prompt(2), 2, _SHORT) | fields)
        # On a connection of its own: some servers close the one that an error came through.
        async with side.connect() as client:
            rows.append((words, said, await _said(client, good, expected)))
    return rows


async def _said(client: Asking, fields: dict[str, object], expected: str = "") -> str:
    """Say in a few words what came back."""
    try:
        picture = await client.ask(fields)
    except Refused as refused:
        return _shortened(f"refused: {refused}")
    except Gone as gone:
        return _shortened(f"the connection broke: {gone}")
    if not expected:
        return f"taken: {describe(picture)}"
    return "the right picture" if digest(picture) == expected else "another picture"


def _shortened(text: str) -> str:
    # A temporary folder of one machine says nothing.
    words = re.sub(r"unix:\S+", "unix:socket:", " ".join(text.split())).replace("|", "/")
    shown = words[:_ANSWER_CHARACTERS]
    return shown if shown == words else f"{shown} ..."


async def _kill_all(side: Side, plan: Plan) -> Sequence[tuple[str, ...]]:
    """Kill what holds the model, then what listens, where that is another process."""
    model = side.model_processes()[0]
    rows = [await _kill(side, model, "what holds the model", plan)]
    if model != side.server_process:
        rows.append(await _kill(side, side.server_process, "what listens", plan))
    return rows


async def _kill(side: Side, process: psutil.Process, words: str, plan: Plan) -> tuple[str, ...]:
    """Kill a process while a generation runs and another waits."""
    fields = [request(prompt(seed), seed, plan.peer_long) for seed in (1, 2)]
    async with side.connect() as running, side.connect() as queued:
        expected = [digest(await running.ask(wanted)) for wanted in fields]
        clients = zip((running, queued), fields, expected, strict=True)
        asked = [asyncio.create_task(_told(*client)) for client in clients]
        await asyncio.sleep(_HEAD_START_SECONDS / 2)
        began = time.perf_counter()
        process.kill()
        told = await asyncio.gather(*asked)
    serves = await _serves(side, fields[0], expected[0], began)
    return (words, *told, serves)


async def _told(client: Asking, fields: dict[str, object], expected: str) -> str:
    try:
        async with asyncio.timeout(_GIVE_UP_SECONDS):
            return await _said(client, fields, expected)
    except TimeoutError:
        return f"nothing for {_GIVE_UP_SECONDS:g} s"


async def _serves(side: Side, fields: dict[str, object], expected: str, began: float) -> str:
    """Say after how long it serves again, if it does."""
    if not side.server_process.is_running() or side.server_process.status() == "zombie":
        return "never: nobody starts it again"
    async with side.connect() as client:
        said = await _told(client, fields, expected)
    return f"after {time.perf_counter() - began:.1f} s: {said}"


KINDS = (
    Kind(
        "A client leaves",
        (
            "its generation would last",
            "the next one's additional wait, median",
            "range",
            "n",
        ),
        _leave,
    ),
    Kind("A bad request", ("what", "answer", "the next good one"), _send_bad),
    Kind(
        "A process is killed",
        ("which", "the client whose generation ran", "the client that waited", "serves again"),
        _kill_all,
    ),
)
