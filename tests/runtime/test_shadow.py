"""Shadow comparisons over the real ledger, whose ranks are the test."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from tests.runtime.making import PARAMETERS, chunk, step, submission
from tests.service.fakes import completed

from ditcast_runtime.accepted import Generation
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import NotServing, OutOfMemory, RuntimeFailure
from ditcast_runtime.events import Completed, RequestWarning
from ditcast_runtime.generation import OutputFormat, Parameters, State
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.settings import CacheSettings, DBCache, Disabled
from ditcast_runtime.shadow import Shadows

SIDE = 16
CACHED = dataclasses.replace(
    PARAMETERS, width=SIDE, height=SIDE, num_images=2, cache=CacheSettings(method=DBCache())
)


def grey(level: int) -> bytes:
    """Give the pixels of a picture of one level."""
    return bytes([level]) * (SIDE * SIDE * 3)


@dataclasses.dataclass
class Service:
    """A ledger and its shadows, and what the ranks were told to leave."""

    ledger: Ledger
    shadows: Shadows
    left: list[str]
    refusals: list[RuntimeFailure]
    """What refuses new ones now, if anything."""

    def deliver(self, parameters: Parameters = CACHED) -> Generation:
        """Run one with a cache until its two outputs are on their way."""
        self.ledger.admit(submission(parameters=parameters, shadow_comparison=True))
        generation = self.ledger.take()
        assert generation is not None
        generation.state = State.RUNNING
        self.ledger.release(generation)
        generation.log.append(chunk(b"encoded"))
        generation.pixels = [grey(100), grey(110)]
        last = completed(parameters, b"encoded")
        generation.completed = dataclasses.replace(
            last, timings=dataclasses.replace(last.timings, denoise=1.0)
        )
        self.shadows.succeed(generation)
        return generation

    async def shadow(self) -> Generation:
        """Wait for the one without a cache, and begin with it."""
        async with asyncio.timeout(5):
            while (generation := self.ledger.take()) is None:
                self.ledger.work.clear()
                await self.ledger.work.wait()
        generation.state = State.RUNNING
        return generation

    def finish(self, shadow: Generation, *pixels: bytes) -> None:
        """End it well, with its pixels."""
        self.ledger.release(shadow)
        for index, data in enumerate(pixels):
            shadow.log.append(chunk(data[:100], index))
            rest = dataclasses.replace(chunk(data[100:], index), offset=100)
            shadow.log.append(rest)
        last = completed(shadow.parameters, b"")
        shadow.completed = dataclasses.replace(
            last, timings=dataclasses.replace(last.timings, denoise=4.0)
        )
        self.shadows.succeed(shadow)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Make an empty one."""
    left: list[str] = []
    ledger = Ledger(EngineConfig(), tmp_path, lambda made: left.append(made.request_id))
    with ThreadPoolExecutor(1) as pool:
        refusals: list[RuntimeFailure] = []

        def check() -> None:
            for refusal in refusals:
                raise refusal

        shadows = Shadows(ledger, pool, check)
        yield Service(ledger, shadows, left, refusals)
        async with asyncio.timeout(5):
            await shadows.idle()


async def events(generation: Generation) -> list[object]:
    """Read a log to its end."""
    return [event.kind async for event in generation.follow() if event is not None]


async def test_the_same_without_a_cache_runs_next_and_is_compared(service: Service) -> None:
    """Before whatever waits; raw, with the same seed; the last event has what was found."""
    generation = service.deliver()
    service.ledger.admit(submission("other"))
    await asyncio.sleep(0)
    shadow = await service.shadow()
    assert shadow.request_id == "mine/shadow"
    wanted = shadow.parameters
    assert isinstance(wanted.cache.method, Disabled)
    assert wanted.output.format is OutputFormat.RAW_RGB8
    same = {"cache": CACHED.cache, "output": CACHED.output}
    assert dataclasses.replace(wanted, **same) == CACHED  # type: ignore[arg-type]
    assert not generation.state.final
    service.finish(shadow, grey(100), grey(120))
    found = await events(generation)
    last = found[-1]
    assert isinstance(last, Completed)
    assert last.shadow is not None
    assert [each.output_index for each in last.shadow.outputs] == [0, 1]
    assert [each.psnr for each in last.shadow.outputs] == [60, pytest.approx(28.13, abs=0.01)]
    assert last.shadow.outputs[0].ssim == pytest.approx(1)
    assert (last.shadow.uncached_denoise, last.shadow.time_ratio) == (4.0, 0.25)
    assert last.timings.shadow > 0
    assert last.timings.total >= last.timings.shadow
    assert generation.pixels == []
    assert generation.state is State.SUCCEEDED


async def test_nobody_finds_or_lists_the_shadow(service: Service) -> None:
    """It is a part of the generation that asked for it."""
    service.deliver()
    shadow = await service.shadow()
    assert [each.request_id for each in service.ledger.summaries(None)] == ["mine"]
    service.finish(shadow, grey(1), grey(2))
    await service.shadows.idle()
    assert [each.request_id for each in service.ledger.summaries(None)] == ["mine"]
    assert service.ledger.vitals.bytes_in_flight == 0


async def test_a_cancel_reaches_the_shadow_at_once(service: Service) -> None:
    """The ranks are told to leave it; there is nothing more to wait for."""
    generation = service.deliver()
    shadow = await service.shadow()
    shadow.log.append(step(1))
    await asyncio.sleep(0)
    service.ledger.cancel(generation)
    await service.shadows.idle()
    assert service.left == ["mine/shadow"]
    assert (generation.state, shadow.state) == (State.CANCELLED, State.CANCELLED)


async def test_a_shadow_that_waits_is_taken_out(service: Service) -> None:
    """Also where the generation ends before its shadow has ever been followed."""
    generation = service.deliver()
    service.ledger.cancel(generation)
    await service.shadows.idle()
    assert service.ledger.take() is None
    assert service.ledger.vitals.bytes_in_flight == 0


async def test_what_cannot_be_compared_still_ends_well(service: Service) -> None:
    """The outputs are good: a warning says why nothing is known about them."""
    generation = service.deliver()
    shadow = await service.shadow()
    service.ledger.release(shadow)
    failure: RuntimeFailure = OutOfMemory((0,))
    service.ledger.end(shadow, failure)
    found = await events(generation)
    warning, last = found[-2:]
    assert isinstance(warning, RequestWarning)
    assert warning.field == "shadow_comparison"
    assert str(failure) in warning.message
    assert isinstance(last, Completed)
    assert last.shadow is None
    assert generation.state is State.SUCCEEDED


async def test_another_configuration_is_not_compared_with(service: Service) -> None:
    """Other settings may draw another picture."""
    generation = service.deliver()
    shadow = await service.shadow()
    shadow.revision = 2
    service.finish(shadow, grey(100), grey(110))
    warning = (await events(generation))[-2]
    assert isinstance(warning, RequestWarning)
    assert "configuration" in warning.message


async def test_none_begins_while_the_service_stops(service: Service) -> None:
    """Nothing would take it up, and its generation would wait for ever."""
    service.refusals.append(NotServing("DRAINING", timedelta(seconds=1)))
    generation = service.deliver()
    found = await events(generation)
    assert isinstance(found[-1], Completed)
    assert isinstance(found[-2], RequestWarning)
    assert service.ledger.take() is None
