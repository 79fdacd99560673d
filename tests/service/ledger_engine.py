"""An engine with the real ledger, log and retention, whose ranks are the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests.service.fakes import CONFIGURATION, FACTS, chunks, completed, step

from ditcast_runtime.accepted import Generation, Submission
from ditcast_runtime.config import Adapter, Configuration, EngineConfig
from ditcast_runtime.events import Started
from ditcast_runtime.generation import State
from ditcast_runtime.ledger import Ledger, Vitals
from ditcast_runtime.messages import Facts
from ditcast_runtime.summary import Summary


class LedgerEngine:
    """What the edge needs of an engine; `run` and `finish` do what the ranks would."""

    def __init__(self, config: EngineConfig, folder: Path) -> None:
        self.left: list[str] = []
        """Those that the ranks were told to leave."""
        self.ledger = Ledger(config, folder, lambda made: self.left.append(made.request_id))
        self.submissions: list[Submission] = []

    @property
    def facts(self) -> Facts:
        """What the fake pipeline takes."""
        return FACTS

    @property
    def configuration(self) -> Configuration:
        """What is in force."""
        return CONFIGURATION

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """What is loaded: nothing."""
        return ()

    @property
    def serving_groups(self) -> tuple[int, ...]:
        """Those that serve: the only one."""
        return (0,)

    @property
    def occupancy(self) -> int:
        """How many wait or have ranks."""
        return self.ledger.occupancy

    @property
    def vitals(self) -> Vitals:
        """How much there is of everything now."""
        return self.ledger.vitals

    def submit(self, submission: Submission) -> Generation:
        """Take a generation, unless its id was taken while it was being settled."""
        known = self.same(submission.request_id, submission.identity, submission.digest)
        if known is not None:
            return known
        self.submissions.append(submission)
        return self.ledger.admit(submission)

    def same(self, request_id: str, identity: str, digest: bytes) -> Generation | None:
        """Give the generation that an id stands for."""
        return self.ledger.same(request_id, identity, digest)

    def find(self, request_id: str, identity: str) -> Generation:
        """Give a caller's generation."""
        return self.ledger.find(request_id, identity)

    def summaries(self, identity: str | None) -> list[Summary]:
        """List a caller's generations."""
        return self.ledger.summaries(identity)

    def cancel(self, request_id: str, identity: str) -> State:
        """End a generation."""
        generation = self.ledger.find(request_id, identity)
        met = generation.state
        self.ledger.cancel(generation)
        return met

    async def run(self, steps: int = 2) -> Generation:
        """Wait for the next generation and make so many steps of it."""
        while (generation := self.ledger.take()) is None:
            self.ledger.work.clear()
            await self.ledger.work.wait()
        generation.state = State.RUNNING
        started = Started(
            parameters=generation.parameters, configuration_revision=1, world_size=1, epoch=1
        )
        generation.log.append(started)
        for number in range(1, steps + 1):
            self.step(generation, number)
        return generation

    def step(self, generation: Generation, number: int) -> None:
        """Make a step."""
        event = step(number, generation.parameters.num_inference_steps)
        generation.steps.append(event)
        generation.log.append(event)

    def finish(self, generation: Generation, data: bytes = b"picture", size: int = 3) -> None:
        """Put out a picture and end it well."""
        self.ledger.release(generation)
        for part in chunks(data, size):
            generation.log.append(part)
        generation.log.append(completed(generation.parameters, data))
        self.ledger.succeed(generation)

    async def until_readers(self, request_id: str, readers: int) -> None:
        """Wait until a generation has so many readers."""
        await until(lambda: self.find(request_id, "").readers == readers)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that nothing tells of."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.005)
