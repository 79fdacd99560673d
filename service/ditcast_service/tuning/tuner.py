"""Serves Tune: settles what is asked for, has it measured, and streams what is found."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from grpc import aio

from ditcast.v1.diffusion_service_pb2 import TuneRequest, TuneResponse
from ditcast.v1.tuning_pb2 import TuneEvent
from ditcast_service.config import ServerConfig
from ditcast_service.intake import Intake
from ditcast_service.interceptors import record
from ditcast_service.refusals import TuneRunning
from ditcast_service.streaming import taken
from ditcast_service.translate import tuning
from ditcast_service.tuning.painting import Painter, SubmittingEngine
from ditcast_service.tuning.plan import settle
from ditcast_service.tuning.sweep import Compared, Progress, Sweep

TuneContext = aio.ServicerContext[TuneRequest, TuneResponse]

_UNKNOWN_SECONDS = 60.0
"""What the running one is taken to need yet before anything of it was measured."""


class Tuner:
    """Runs one Tune at a time: each holds a picture to compare with, and no queue bounds those."""

    def __init__(self, engine: SubmittingEngine, intake: Intake, config: ServerConfig) -> None:
        self._engine = engine
        self._intake = intake
        self._config = config
        self._taken = False
        self._began = 0.0
        self._sweep: Sweep | None = None

    async def tune(self, request: TuneRequest, context: TuneContext) -> None:
        """Serve one Tune.

        Raises:
            RuntimeFailure: it was refused, or could not be brought to an end.
        """
        # Before the headers: what is refused without any, proxies and gRPC may try elsewhere.
        with self._turn():
            name = f"tune-{uuid.uuid4()}"
            record.get().request_id = name
            # At once: proxies and clients time the headers.
            await context.send_initial_metadata(())
            plan = await settle(request, self._intake)

            async def send(event: TuneEvent) -> None:
                await taken(context.write(TuneResponse(event=event)), self._config.reader_timeout)

            async def tell(found: Progress | Compared) -> None:
                await send(tuning.told(found))

            painter = Painter(self._engine, self._intake, name, context.time_remaining)
            self._sweep = Sweep(plan, painter, tell)
            await send(tuning.started(plan))
            await send(tuning.completed(plan, await self._sweep.run()))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._taken:
            raise TuneRunning(self._left())
        self._taken, self._began = True, time.monotonic()
        try:
            yield
        finally:
            self._taken, self._sweep = False, None

    def _left(self) -> timedelta:
        """Foretell how long the running one takes yet, by the generations that it has done."""
        if self._sweep is None or not self._sweep.done:
            return timedelta(seconds=_UNKNOWN_SECONDS)
        each = (time.monotonic() - self._began) / self._sweep.done
        return timedelta(seconds=each * (self._sweep.total - self._sweep.done))
