"""Puts what a ConfigureRequest asks for into force, or says what would become of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from ditcast.v1.diffusion_service_pb2 import ConfigureRequest, ConfigureResponse
from ditcast_runtime.config import Configuration
from ditcast_runtime.messages import Facts
from ditcast_service.change import Plan, plan
from ditcast_service.config import ServerConfig
from ditcast_service.refusals import NotAppliedInTime
from ditcast_service.translate.acceleration import configuration_to_proto

_MARGIN_SECONDS = 0.05
"""Before the caller's deadline, so that our answer, and not the caller's own timer, tells it that
nothing was changed."""


class ConfigurableEngine(Protocol):
    """What a change needs of the engine."""

    @property
    def facts(self) -> Facts:
        """What the loaded pipeline takes; raises NotServing before the first SERVING."""
        ...

    @property
    def configuration(self) -> Configuration:
        """What is in force."""
        ...

    @property
    def initial_configuration(self) -> Configuration:
        """What the server started with."""
        ...

    async def configure(self, plan: Callable[[Configuration], Configuration]) -> Configuration:
        """Put into force what `plan` makes of the current configuration; one writer at a time."""
        ...


async def configure(
    engine: ConfigurableEngine,
    config: ServerConfig,
    request: ConfigureRequest,
    seconds_left: float | None,
) -> ConfigureResponse:
    """Serve one Configure.

    Args:
        engine: Whose configuration it is.
        config: The limits.
        request: What is asked for.
        seconds_left: Until the caller's deadline. None: it has none.

    Raises:
        NotAppliedInTime: the deadline came first; the old configuration is in force.
        RuntimeFailure: as `Plan.require` and the engine.
    """

    def make(current: Configuration) -> Plan:
        return plan(current, engine.initial_configuration, request, engine.facts, config)

    if request.validate_only:
        found = make(engine.configuration)
        return _answer(found.prediction(), found)
    made: Plan | None = None

    def settle(current: Configuration) -> Configuration:
        # In the writer's turn: what was current when the request came may be so no longer.
        nonlocal made
        made = make(current)
        return made.require()

    async with before_deadline(seconds_left):
        now = await engine.configure(settle)
    return _answer(now, made)


@contextlib.asynccontextmanager
async def before_deadline(seconds_left: float | None) -> AsyncIterator[None]:
    """Give up a change shortly before its caller's deadline.

    Raises:
        NotAppliedInTime: it was given up, and nothing was changed.
    """
    limit = None if seconds_left is None else seconds_left - min(_MARGIN_SECONDS, seconds_left / 4)
    try:
        async with asyncio.timeout(limit):
            yield
    except TimeoutError:
        raise NotAppliedInTime from None


def _answer(configuration: Configuration, made: Plan | None) -> ConfigureResponse:
    return ConfigureResponse(
        configuration=configuration_to_proto(configuration),
        outcomes=made.outcomes() if made else (),
    )
