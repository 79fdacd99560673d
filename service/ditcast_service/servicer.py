# ruff: noqa: ARG002, N802 (methods and parameters are called as the contract calls them)
"""The RPCs of the contract: each asks the engine and translates, and decides nothing itself.

Failures leave as exceptions; `interceptors` makes statuses of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import NoReturn, Protocol, cast

from grpc import aio

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1 import diffusion_service_pb2_grpc
from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_runtime.accepted import Submission
from ditcast_runtime.config import Configuration
from ditcast_runtime.errors import InvalidRequest, ReaderTimeout
from ditcast_runtime.events import Event, RequestWarning, Started
from ditcast_runtime.generation import Parameters, State
from ditcast_runtime.messages import Facts
from ditcast_runtime.settings import Problem
from ditcast_service.config import ServerConfig
from ditcast_service.interceptors import record
from ditcast_service.status import Unimplemented
from ditcast_service.translate.acceleration import configuration_to_proto
from ditcast_service.translate.capabilities import capabilities
from ditcast_service.translate.events import event_to_proto, heartbeat, started, state_number
from ditcast_service.translate.request import digest, request_from_proto
from ditcast_service.validation import check_request_id, resolve

REQUEST_ID_KEY = "ditcast-request-id"
"""Initial metadata that names the generation before its first event."""

StreamContext = aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]


class Generation(Protocol):
    """What the RPCs need of a generation; the engine's own class has it."""

    @property
    def request_id(self) -> str:
        """Its id."""
        ...

    @property
    def state(self) -> State:
        """Where it is in its life."""
        ...

    @property
    def last_sequence(self) -> int:
        """The newest event's number; 0 before the first."""
        ...

    @property
    def steps_done(self) -> int:
        """Denoising steps that have ended."""
        ...

    def follow(self, after_sequence: int = 0) -> AsyncIterator[Event | None]:
        """Give the log's events, and None after each silence; closing it leaves the generation."""
        ...


class Engine(Protocol):
    """What the RPCs need of the engine; tests have one of their own."""

    @property
    def facts(self) -> Facts:
        """What the loaded pipeline takes; raises NotServing before the first SERVING."""
        ...

    @property
    def configuration(self) -> Configuration:
        """What is in force."""
        ...

    def submit(self, submission: Submission) -> Generation:
        """Take a generation; raises QueueFull, NotServing or RequestIdReused."""
        ...

    def cancel(self, request_id: str, identity: str = "") -> State:
        """End a generation and give the state it was in; raises UnknownGeneration."""
        ...


class DiffusionServicer(diffusion_service_pb2_grpc.DiffusionServiceServicer):
    """Serves `ditcast.v1.DiffusionService` over one engine."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self._engine = engine
        self._config = config

    # A coroutine that writes, not a generator: only so can the time of a write be bounded.
    async def Generate(  # type: ignore[override]
        self, request: pb.GenerateRequest, context: StreamContext
    ) -> None:
        """Validate, submit, and stream the log; or, with `validate_only`, answer `started`."""
        request_id = request.request_id or str(uuid.uuid4())
        line = record.get()
        line.request_id = request_id[:128]
        if self._config.log_prompts:
            line.prompt = request.prompt
        # At once: proxies and clients time the headers, and the first event may wait for a queue.
        await context.send_initial_metadata(_identified(request_id))
        submission = self._settle(request, request_id, context.time_remaining())
        if request.validate_only:
            await self._send(context, self._validated(submission))
            return
        generation = self._engine.submit(submission)
        # Nothing may be awaited between submit and the first event: a reader that leaves in
        # between would never count, and its generation would run for nobody.
        await self._stream(context, generation)

    async def CancelGeneration(
        self,
        request: pb.CancelGenerationRequest,
        context: aio.ServicerContext[pb.CancelGenerationRequest, pb.CancelGenerationResponse],
    ) -> pb.CancelGenerationResponse:
        """End a generation; answers at once with the state that it met."""
        problems: list[Problem] = []
        check_request_id(request.request_id, problems, required=True)
        if problems:
            raise InvalidRequest(tuple(problems))
        record.get().request_id = request.request_id
        return pb.CancelGenerationResponse(
            state=state_number(self._engine.cancel(request.request_id))
        )

    async def GetCapabilities(
        self,
        request: pb.GetCapabilitiesRequest,
        context: aio.ServicerContext[pb.GetCapabilitiesRequest, pb.GetCapabilitiesResponse],
    ) -> pb.GetCapabilitiesResponse:
        """Answer what the loaded pipeline takes; UNAVAILABLE until it is loaded."""
        found = capabilities(self._engine.facts, self._config, self._engine.configuration)
        return pb.GetCapabilitiesResponse(capabilities=found)

    async def GetConfiguration(
        self,
        request: pb.GetConfigurationRequest,
        context: aio.ServicerContext[pb.GetConfigurationRequest, pb.GetConfigurationResponse],
    ) -> pb.GetConfigurationResponse:
        """Answer what is in force, with every default filled in."""
        message = configuration_to_proto(self._engine.configuration)
        return pb.GetConfigurationResponse(configuration=message)

    async def WatchGeneration(  # type: ignore[override]
        self, request: pb.WatchGenerationRequest, context: object
    ) -> NoReturn:
        """Refuse: not in this version."""
        raise Unimplemented("WatchGeneration")

    async def ListGenerations(
        self, request: pb.ListGenerationsRequest, context: object
    ) -> NoReturn:
        """Refuse: not in this version."""
        raise Unimplemented("ListGenerations")

    async def Configure(self, request: pb.ConfigureRequest, context: object) -> NoReturn:
        """Refuse: not in this version."""
        raise Unimplemented("Configure")

    def _settle(
        self, request: pb.GenerateRequest, request_id: str, deadline: float | None
    ) -> Submission:
        """Read and settle a request under the configuration in force."""
        asked, problems = request_from_proto(request)
        check_request_id(request.request_id, problems, required=False)

        def settle() -> tuple[Parameters, tuple[RequestWarning, ...]]:
            configuration = self._engine.configuration
            return resolve(asked, self._engine.facts, self._config, configuration, problems)

        revision = self._engine.configuration.revision
        parameters, warnings = settle()
        # Settled anew under a later configuration, it must not draw another seed.
        asked = dataclasses.replace(asked, seed=parameters.seed)
        # The deadline is the stream's alone where the generation may go on without one.
        bounds = (asked.timeout, None if asked.continues else deadline)
        limits = [limit for limit in bounds if limit is not None]
        return Submission(
            request_id=request_id,
            digest=digest(request),
            parameters=parameters,
            warnings=warnings,
            revision=revision,
            settle=settle,
            timeout=min(limits, default=None),
            priority=asked.priority,
            continues=asked.continues,
            reattach_window=asked.reattach_window,
        )

    def _validated(self, submission: Submission) -> GenerationEvent:
        event = Started(
            parameters=submission.parameters,
            configuration_revision=submission.revision,
            world_size=self._config.world_size,
            epoch=0,  # It runs in no group.
        )
        message = GenerationEvent(
            request_id=submission.request_id, sequence=1, started=started(event)
        )
        message.time.GetCurrentTime()
        return message

    async def _stream(self, context: StreamContext, generation: Generation) -> None:
        """Pass the log on as fast as the reader takes it; leaving closes this reader only."""
        line = record.get()
        # An async generator, as every `follow` is: closing it is how a reader leaves.
        events = cast("AsyncGenerator[Event | None]", generation.follow())
        async with aclosing(events):
            async for event in events:
                if event is None:
                    message = heartbeat(
                        generation.request_id, generation.last_sequence, generation.state
                    )
                else:
                    message = event_to_proto(generation.request_id, event)
                line.steps = generation.steps_done
                await self._send(context, message)

    async def _send(self, context: StreamContext, event: GenerationEvent) -> None:
        try:
            async with asyncio.timeout(self._config.reader_timeout):
                await context.write(pb.GenerateResponse(event=event))
        except TimeoutError:
            raise ReaderTimeout from None


def _identified(request_id: str) -> tuple[tuple[str, str], ...]:
    """Name the generation in metadata; an id that no header can hold is known to its caller."""
    plain = request_id.isascii() and request_id.isprintable()
    return ((REQUEST_ID_KEY, request_id),) if plain else ()
