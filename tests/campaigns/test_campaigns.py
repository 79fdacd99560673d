"""The campaigns: short ones always, those of `benchmarks/RELIABILITY.md` by `make soak`."""

from __future__ import annotations

import pytest
from tests.campaigns.commands import expect_kept

SHORT_SEED = 1


@pytest.mark.timeout(600)
async def test_ten_faults_break_no_promise() -> None:
    """With clients at work: ends, bytes, health, and what is left.

    On one rank, which starts twice as fast as two: what several ranks add to the faults has tests
    of its own in `tests/distributed/test_recovery.py`.
    """
    said = await expect_kept("chaos", *_chaos(SHORT_SEED, 10, 1))
    assert "promises broken: 0" in said


async def test_no_stream_of_many_loses_an_event() -> None:
    """200 streams of one generation, and 20 generations at once."""
    said = await expect_kept("load", "--streams", "200", "--generations", "20")
    assert "streams that lost something: 0" in said


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_size", [1, 2, 3])
async def test_two_hundred_faults_break_no_promise(world_size: int) -> None:
    """Each kind more than ten times over the three world sizes."""
    await expect_kept("chaos", *_chaos(world_size, 70, world_size))


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_no_generation_of_many_loses_an_event() -> None:
    """200 generations at once, and 200 streams of one."""
    await expect_kept("load", "--streams", "200")


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("generations", "world_size"), [(2000, 1), (1000, 2)])
async def test_nothing_grows(generations: int, world_size: int) -> None:
    """Memory, descriptors and threads of every process; on two ranks it takes twice as long."""
    arguments = ("--generations", str(generations), "--world-size", str(world_size))
    await expect_kept("steadiness", *arguments)


def _chaos(seed: int, faults: int, world_size: int) -> list[str]:
    numbers = {"--seed": seed, "--faults": faults, "--world-size": world_size}
    return [word for name, number in numbers.items() for word in (name, str(number))]
