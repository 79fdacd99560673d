"""What is kept after the end: within memory, disk, count and time, and what a full disk means."""

from __future__ import annotations

import asyncio
import gc
import resource
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.making import chunk, generation, shown, step

from ditcast_runtime.accepted import Generation
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import ResultNotKept
from ditcast_runtime.generation import State
from ditcast_runtime.retention import Retention


class Kept:
    """A retention with what it forgot."""

    def __init__(self, folder: Path, **bounds: float) -> None:
        self.forgotten: list[str] = []
        config = EngineConfig(**bounds)  # type: ignore[arg-type]
        self.retention = Retention(
            config, folder, lambda made: self.forgotten.append(made.request_id)
        )

    async def keep(self, request_id: str, *outputs: bytes) -> Generation:
        """End a generation with these outputs, and wait until nothing is written."""
        made = ended(request_id, *outputs)
        self.retention.keep(made)
        await self.retention.idle()
        return made


def ended(request_id: str, *outputs: bytes | memoryview) -> Generation:
    """Make a generation that has just succeeded."""
    made = generation(request_id)
    made.log.append(step())
    for index, data in enumerate(outputs):
        made.log.append(chunk(data, index))
    made.log.end()
    made.state = State.SUCCEEDED
    return made


async def outputs_of(made: Generation, after: int = 0) -> list[bytes]:
    """Read the outputs as a later reader does."""
    kinds = [shown(event.kind) async for event in made.follow(after) if event is not None]
    return [kind for kind in kinds if isinstance(kind, bytes)]


class Buffer(bytearray):
    """Memory whose end can be seen."""


@contextmanager
def no_room(free: int = 0) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes: every file system looks full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_the_newest_stay_in_memory_and_older_ones_lie_on_disk(tmp_path: Path) -> None:
    """Memory is bounded; every result can still be read."""
    kept = Kept(tmp_path, retention_memory_bytes=25)
    made = [await kept.keep(str(number), bytes([number]) * 10) for number in range(5)]
    assert [each.log.memory_bytes for each in made] == [0, 0, 0, 10, 10]
    assert [await outputs_of(each) for each in made] == [[bytes([n]) * 10] for n in range(5)]
    assert kept.forgotten == []


async def test_what_is_larger_than_the_memory_goes_to_disk_at_once(tmp_path: Path) -> None:
    """The smaller ones that came before are older, and go first."""
    kept = Kept(tmp_path, retention_memory_bytes=25)
    small = await kept.keep("small", b"small")
    large = await kept.keep("large", b"l" * 26)
    assert (small.log.memory_bytes, large.log.memory_bytes) == (0, 0)
    assert await outputs_of(large) == [b"l" * 26]


async def test_the_oldest_are_forgotten_first(tmp_path: Path) -> None:
    """By bytes in all, wherever they lie, and by count."""
    kept = Kept(tmp_path, retention_memory_bytes=0, retention_bytes=30)
    for name in "abcd":
        await kept.keep(name, b"x" * 10)
    assert kept.forgotten == ["a"]
    kept = Kept(tmp_path, retention_count=2)
    for name in "abcd":
        await kept.keep(name)
    assert kept.forgotten == ["a", "b"]


async def test_time_ends_the_retention(tmp_path: Path) -> None:
    """Whether it lies in memory or on disk."""
    kept = Kept(tmp_path, retention=0.05, retention_memory_bytes=5)
    await kept.keep("disk", b"x" * 10)
    await kept.keep("memory", b"x")
    assert kept.forgotten == []
    await asyncio.sleep(0.1)
    assert kept.forgotten == ["disk", "memory"]
    assert kept.retention.memory_bytes == 0


async def test_what_is_larger_than_all_is_for_those_who_read_now(tmp_path: Path) -> None:
    """It pushes out nothing else, and says why it is not there."""
    kept = Kept(tmp_path, retention_bytes=20)
    small = await kept.keep("small", b"x" * 10)
    large = ended("large", b"x" * 21)
    reader = large.follow()
    await anext(reader)
    kept.retention.keep(large)
    with pytest.raises(ResultNotKept, match="retention_bytes"):
        await outputs_of(large)
    rest = [shown(event.kind) async for event in reader if event is not None]
    assert rest == [b"x" * 21]
    assert await outputs_of(small) == [b"x" * 10]
    assert kept.forgotten == []


async def test_a_full_disk_refuses_later_readers_only(tmp_path: Path) -> None:
    """Attached readers get every byte; then the memory is free, and the next one is kept."""
    kept = Kept(tmp_path, retention_memory_bytes=0)
    buffer = Buffer(b"abc" * 1000)
    full = ended("full", memoryview(buffer), b"def" * 1000)
    held = weakref.ref(buffer)
    del buffer
    reader = full.follow()
    first = await anext(reader)
    with no_room(free=1000):
        kept.retention.keep(full)
        await kept.retention.idle()
    with pytest.raises(ResultNotKept, match="too large"):
        await outputs_of(full)
    rest = [shown(event.kind) async for event in reader if event is not None]
    assert first is not None
    assert rest == [b"abc" * 1000, b"def" * 1000]
    gc.collect()
    assert held() is None
    # Whoever has the outputs already may still see the end.
    assert await outputs_of(full, after=3) == []
    after = await kept.keep("next", b"xyz" * 1000)
    assert await outputs_of(after) == [b"xyz" * 1000]


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """Give a folder that holds 64 KiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def test_a_file_system_that_is_really_full(small_folder: Path) -> None:
    """What fits is kept, what does not is said, and what is forgotten gives its space back."""
    kept = Kept(small_folder, retention=0.3, retention_memory_bytes=0)
    fits = await kept.keep("fits", b"a" * 40_000)
    full = await kept.keep("full", b"b" * 40_000)
    assert await outputs_of(fits) == [b"a" * 40_000]
    with pytest.raises(ResultNotKept, match="No space left on device"):
        await outputs_of(full)
    await asyncio.sleep(0.4)
    assert kept.forgotten == ["fits", "full"]
    del fits
    gc.collect()
    again = await kept.keep("again", b"c" * 60_000)
    assert await outputs_of(again) == [b"c" * 60_000]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    memory=st.integers(0, 60),
    disk=st.integers(0, 120),
    count=st.integers(0, 6),
)
def test_the_bounds_hold_for_any_sequence(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    memory: int,
    disk: int,
    count: int,
) -> None:
    """What is not forgotten and fits can be read, and the bounds are never passed."""

    async def play() -> None:
        kept = Kept(
            tmp_path_factory.getbasetemp(),
            retention_memory_bytes=memory,
            retention_bytes=disk,
            retention_count=count,
        )
        made = []
        for number, size in enumerate(sizes):
            made.append(await kept.keep(str(number), bytes([number]) * size))
            left = [each for each in made if each.request_id not in kept.forgotten]
            assert len(left) <= count
            assert kept.retention.memory_bytes <= memory
            readable = [each for each in left if not each.log.lost]
            assert sum(each.log.output_bytes for each in readable) <= disk
        for each in made:
            if each.log.lost:
                assert each.log.output_bytes > disk
                continue
            size = each.log.output_bytes
            assert await outputs_of(each) == [bytes([int(each.request_id)]) * size]
        order = [int(request_id) for request_id in kept.forgotten]
        assert order == list(range(len(order)))

    asyncio.run(play())
