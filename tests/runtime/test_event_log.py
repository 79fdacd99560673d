"""Readers of a log see the same events, whenever they come and wherever the outputs lie."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.making import abandoned, chunk, generation, shown, step

from ditcast_runtime.errors import GenerationCancelled, ResultNotKept
from ditcast_runtime.event_log import EventLog
from ditcast_runtime.events import Event, EventKind
from ditcast_runtime.generation import State
from ditcast_runtime.spill import SpillFile

Reader = AsyncGenerator[Event | None, None]
Seen = tuple[int, EventKind | bytes]

EVENTS = st.one_of(
    st.binary(max_size=40).map(chunk), st.integers(1, 4).map(step), st.just(chunk(b""))
)
ACTIONS = st.one_of(
    st.tuples(st.just("append"), EVENTS),
    st.tuples(st.just("attach"), st.integers(0, 8)),
    st.tuples(st.just("take"), st.integers(0, 5)),
    st.sampled_from([("end", 0), ("move", 0), ("lose", 0)]),
)


class Model:
    """A log with its readers, and beside it what was written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = EventLog()
        self.written: list[EventKind | bytes] = []
        self.readers: list[tuple[int, Reader, list[Seen]]] = []

    async def act(self, name: str, argument: object) -> None:
        """Do one thing; what cannot be done now is passed over."""
        match name, argument:
            case "append", _:
                if self.log.ended_at is None:
                    self.written.append(shown(argument))  # type: ignore[arg-type]
                self.log.append(argument)  # type: ignore[arg-type]
            case "attach", int(after):
                await self.attach(min(after, self.log.last_sequence))
            case "take", int(number) if number < len(self.readers):
                await self.take(number)
            case "end", _:
                self.log.end()
            case "move", _ if self.log.ended_at is not None and not self.log.lost:
                self.log.move(await asyncio.to_thread(SpillFile, self.folder, self.log.pieces()))
            case "lose", _ if self.log.ended_at is not None and self.log.memory_bytes:
                self.log.lose(ResultNotKept("disk full"))

    async def attach(self, after: int) -> None:
        """Begin to read: the first event is taken, as a reader counts from there."""
        reader = self.log.follow(after, silence=0.0)
        owed = [kind for kind in self.written[after:] if isinstance(kind, bytes)]
        if self.log.lost and owed:
            with pytest.raises(ResultNotKept):
                await anext(reader)
            return
        self.readers.append((after, reader, []))
        await self.take(len(self.readers) - 1)

    async def take(self, number: int) -> None:
        """Read one event, or one silence."""
        _, reader, seen = self.readers[number]
        event = await anext(reader, None)
        if event is not None:
            seen.append((event.sequence, shown(event.kind)))

    async def check(self) -> None:
        """Read everything to its end: no gap, no repetition, the same bytes for all."""
        self.log.end()
        for number, (after, _, seen) in enumerate(self.readers):
            while len(seen) < len(self.written) - after:
                await self.take(number)
            await self.take(number)
            expected = list(enumerate(self.written, start=1))[after:]
            assert seen == expected


@settings(deadline=None, max_examples=200)
@given(st.lists(ACTIONS, max_size=40))
def test_every_reader_sees_the_same_gapless_sequence(actions: list[tuple[str, object]]) -> None:
    """However appends, readers, moves to disk and losses interleave."""

    async def play(folder: Path) -> None:
        model = Model(folder)
        for name, argument in actions:
            await model.act(name, argument)
        await model.check()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))


async def test_the_times_are_the_same_from_disk(tmp_path: Path) -> None:
    """A replay repeats the events themselves, not only their bytes."""
    log = EventLog()
    for kind in (step(1), chunk(b"abc"), chunk(b""), chunk(b"defg", index=1), step(2)):
        log.append(kind)
    log.end()
    live = [event async for event in log.follow(0, 1.0)]
    log.move(SpillFile(tmp_path, log.pieces()))
    assert log.memory_bytes == 0
    assert [event async for event in log.follow(0, 1.0)] == live
    assert files_in(tmp_path) == []


def files_in(folder: Path) -> list[Path]:
    """List what has a name."""
    return list(folder.iterdir())


async def test_the_failure_ends_every_reader_alike() -> None:
    """What ended a generation is raised for readers of then and of later."""
    log = EventLog()
    log.append(step())
    log.end(GenerationCancelled(1))
    for after in (0, 1):
        with pytest.raises(GenerationCancelled):
            async for _ in log.follow(after, 1.0):
                pass


async def test_a_generation_without_a_window_is_left_with_its_last_reader() -> None:
    """The first of two readers leaves nothing; the second one leaves it."""
    made = generation("two readers")
    made.log.append(step())
    first, second = made.follow(), made.follow()
    await anext(first)
    await anext(second)
    assert made.readers == 2
    await first.aclose()
    assert made not in abandoned
    await second.aclose()
    assert abandoned[-1] is made


async def test_a_reader_within_the_window_saves_it() -> None:
    """The window counts from the last reader's end, and anew each time."""
    made = generation("window", reattach_window=0.2)
    made.log.append(step())
    for _ in range(3):
        reader = made.follow()
        await anext(reader)
        await asyncio.sleep(0.15)  # Longer than what was left of the window before.
        await reader.aclose()
        await asyncio.sleep(0.1)
    assert made not in abandoned
    await asyncio.sleep(0.3)
    assert made in abandoned


async def test_what_continues_is_never_left() -> None:
    """CONTINUE needs no reader."""
    made = generation("continues", continues=True)
    made.log.append(step())
    reader = made.follow()
    await anext(reader)
    await reader.aclose()
    await asyncio.sleep(0)
    assert made not in abandoned


async def test_nothing_ends_what_has_ended() -> None:
    """Timers of a generation stop with it."""
    made = generation("ended", reattach_window=0.05)
    made.log.append(step())
    reader = made.follow()
    await anext(reader)
    await reader.aclose()
    made.log.end()
    made.state = State.SUCCEEDED
    made.retire()
    await asyncio.sleep(0.1)
    assert made not in abandoned
