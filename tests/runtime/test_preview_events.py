"""Only the newest preview counts: in the log, on its way to it, and after the end."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.runtime.making import generation, step

from ditcast_runtime.event_log import EventLog
from ditcast_runtime.events import Preview
from ditcast_runtime.generation import State
from ditcast_runtime.messages import Preview as Report
from ditcast_runtime.preview_delivery import PreviewDelivery


def preview(number: int, output_index: int = 0) -> Preview:
    """Make the preview of a step."""
    return Preview(
        step=number,
        output_index=output_index,
        media_type="image/jpeg",
        width=8,
        height=8,
        data=bytes([number]),
    )


def report(number: int, run: int = 1) -> Report:
    """Make what rank 0 reports of a step: one picture of one pixel."""
    return Report(epoch=1, number=run, step=number, count=1, width=1, height=1, pixels=b"abc")


async def read(log: EventLog) -> list[tuple[int, int, bytes]]:
    """Read all previews of a log that has ended: sequence, step and data."""
    found = [event async for event in log.follow(0, 1.0) if event is not None]
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))
    return [
        (event.sequence, event.kind.step, event.kind.data)
        for event in found
        if isinstance(event.kind, Preview)
    ]


async def test_a_newer_preview_takes_the_data_of_the_older_and_leaves_its_number() -> None:
    """A reader who comes late, or is slow, sees the newest of each output, and no gap."""
    log = EventLog()
    for event in (step(1), preview(1), preview(1, 1), step(2), preview(2), preview(3)):
        log.append(event)
    log.end()
    assert await read(log) == [(2, 1, b""), (3, 1, b"\1"), (5, 2, b""), (6, 3, b"\3")]
    log.drop_previews()
    assert {data for _, _, data in await read(log)} == {b""}


class Encoder:
    """Encodes when it is let, and remembers what."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.sizes: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def __call__(self, pixels: bytes, size: tuple[int, int], wanted: tuple[int, int]) -> bytes:
        """Wait, and give the pixels; b"bad" cannot be encoded."""
        assert self.let.wait(10)
        self.sizes.append((size, wanted))
        if pixels == b"bad":
            raise ValueError(pixels)
        return pixels


@pytest.fixture
def encoder() -> Encoder:
    """Give an encoder that waits."""
    return Encoder()


async def test_what_waits_for_the_encoder_is_replaced(encoder: Encoder) -> None:
    """The first is being encoded, the last waits; those between are left out."""
    running = generation()
    running.state, running.number = State.RUNNING, 1
    with ThreadPoolExecutor(1) as pool:
        previews = PreviewDelivery(encoder, pool)
        previews.take(running, report(1))
        await asyncio.sleep(0)
        for number in (2, 3, 4):
            previews.take(running, report(number))
        encoder.let.set()
        await previews.idle()
    running.log.end()
    assert [number for _, number, _ in await read(running.log)] == [1, 4]
    sizes = running.parameters.width, running.parameters.height
    assert encoder.sizes == [((1, 1), sizes)] * 2


async def test_previews_of_a_lost_run_and_broken_ones_are_left_out(encoder: Encoder) -> None:
    """They would show what begins again; and an encoder's fault ends no generation."""
    running = generation()
    running.state, running.number = State.RUNNING, 2
    encoder.let.set()
    with ThreadPoolExecutor(1) as pool:
        previews = PreviewDelivery(encoder, pool)
        for made in (report(1, run=1), _broken(report(2, run=2)), report(3, run=2)):
            previews.take(running, made)
            await previews.idle()
    running.log.end()
    assert [number for _, number, _ in await read(running.log)] == [3]


def _broken(made: Report) -> Report:
    return Report(
        **{name: getattr(made, name) for name in made.__struct_fields__} | {"pixels": b"bad"}
    )


async def test_nothing_is_kept_of_previews_once_all_readers_are_gone() -> None:
    """The outputs are what is kept of a generation that has ended."""
    made = generation()
    made.log.append(preview(1))
    made.readers = 1
    made.retire()
    made.log.end()
    assert await read(made.log) == [(1, 1, b"\1")]
    made.state = State.SUCCEEDED
    async for _ in made.follow():
        pass
    made.readers = 0
    async for _ in made.follow():
        pass
    assert await read(made.log) == [(1, 1, b"")]
