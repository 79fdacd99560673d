# ruff: noqa: ARG002, N802 (methods and parameters are called as the contract calls them)
"""The RPCs of the contract: each asks the engine and translates, and decides nothing itself.

Failures leave as exceptions; `interceptors` makes statuses of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Protocol

from grpc import aio

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1 import diffusion_service_pb2_grpc
from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_runtime.accepted import Submission
from ditcast_runtime.config import Configuration
from ditcast_runtime.errors import InvalidRequest
from ditcast_runtime.events import Started
from ditcast_runtime.generation import State
from ditcast_runtime.settings import Problem
from ditcast_runtime.summary import Summary
from ditcast_service import adapters, load_report
from ditcast_service.adapter_folders import AdapterFolders
from ditcast_service.adapters import AdapterEngine
from ditcast_service.callers import Scope
from ditcast_service.config import ServerConfig
from ditcast_service.configure import ConfigurableEngine, configure
from ditcast_service.intake import Intake, identity
from ditcast_service.interceptors import record
from ditcast_service.listing import page
from ditcast_service.streaming import Generation, Stream
from ditcast_service.translate.acceleration import configuration_to_proto
from ditcast_service.translate.capabilities import capabilities
from ditcast_service.translate.events import started, state_number
from ditcast_service.translate.request import digest
from ditcast_service.tuning.tuner import TuneContext, Tuner
from ditcast_service.validation import MAX_REQUEST_ID_CHARACTERS, check_request_id

REQUEST_ID_KEY = "ditcast-request-id"
"""Initial metadata that names the generation before its first event."""

GenerateContext = aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
WatchContext = aio.ServicerContext[pb.WatchGenerationRequest, pb.WatchGenerationResponse]


class Engine(ConfigurableEngine, AdapterEngine, Protocol):
    """What the RPCs need of the engine; tests have one of their own."""

    def configuration_at(self, revision: int) -> Configuration:
        """Give one of the last 20 configurations; raises UnknownRevision."""
        ...

    def submit(self, submission: Submission) -> Generation:
        """Take a generation; raises QueueFull, NotServing or RequestIdReused."""
        ...

    def same(self, request_id: str, identity: str, digest: bytes) -> Generation | None:
        """Give the generation that an id stands for; raises RequestIdReused or NotServing."""
        ...

    def find(self, request_id: str, identity: str) -> Generation:
        """Give a caller's generation; raises UnknownGeneration."""
        ...

    def summaries(self, identity: str | None) -> list[Summary]:
        """List a caller's generations, or everybody's, the newest first."""
        ...

    @property
    def serving_groups(self) -> Collection[int]:
        """The indices of the groups of ranks that take generations."""
        ...

    @property
    def occupancy(self) -> int:
        """How many generations wait or have ranks."""
        ...

    def cancel(self, request_id: str, identity: str) -> State:
        """End a generation and give the state it was in; raises UnknownGeneration."""
        ...


class DiffusionServicer(diffusion_service_pb2_grpc.DiffusionServiceServicer):
    """Serves `ditcast.v1.DiffusionService` over one engine."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self._engine = engine
        self._config = config
        self._intake = Intake(engine, config)
        self._tuner = Tuner(engine, self._intake, config)
        self._adapter_folders = AdapterFolders(config.adapter_folder)

    # A coroutine that writes, not a generator: only so can the time of a write be bounded.
    async def Generate(  # type: ignore[override]
        self, request: pb.GenerateRequest, context: GenerateContext
    ) -> None:
        """Validate, submit, and stream the log; or, with `validate_only`, answer `started`."""
        request_id = request.request_id or str(uuid.uuid4())
        line = record.get()
        line.request_id = request_id[:MAX_REQUEST_ID_CHARACTERS]
        if self._config.log_prompts:
            line.prompt = request.prompt
        stream = Stream(
            context, lambda event: pb.GenerateResponse(event=event), self._config.reader_timeout
        )
        try:
            await self._generate(request, request_id, context, stream)
        finally:
            # Of refusals too: they say more about the load than what went well.
            context.set_trailing_metadata(load_report.trailers(self._utilization()))

    async def _generate(
        self,
        request: pb.GenerateRequest,
        request_id: str,
        context: GenerateContext,
        stream: Stream,
    ) -> None:
        generation = None
        if not request.validate_only:
            # A second reader must find its generation under whatever configuration is in force now.
            # Before the headers: what is refused without any, proxies and gRPC may try elsewhere.
            generation = self._engine.same(request_id, identity(), digest(request))
        # At once: proxies and clients time the headers, and the first event may wait for a queue.
        await context.send_initial_metadata(_identified(request_id))
        if request.validate_only:
            submission = await self._intake.take(request, request_id, context.time_remaining())
            submission.free_pictures()
            await stream.send(self._validated(submission))
            return
        if generation is None:
            submission = await self._intake.take(request, request_id, context.time_remaining())
            generation = self._engine.submit(submission)
        # Nothing may be awaited between submit and the first event: a reader that leaves in
        # between would never count, and its generation would run for nobody.
        await stream.pass_on(generation)

    async def WatchGeneration(  # type: ignore[override]
        self, request: pb.WatchGenerationRequest, context: WatchContext
    ) -> None:
        """Find the generation, and stream its log after an event."""
        _check_id(request.request_id)
        # Before the headers: a proxy may look for what is not here at another server.
        generation = self._engine.find(request.request_id, identity())
        await context.send_initial_metadata(_identified(request.request_id))
        if request.after_sequence > generation.last_sequence:
            reason = (
                f"{request.after_sequence} is beyond the last event, {generation.last_sequence}"
            )
            raise InvalidRequest((Problem("after_sequence", reason),))
        stream = Stream(
            context,
            lambda event: pb.WatchGenerationResponse(event=event),
            self._config.reader_timeout,
        )
        await stream.pass_on(generation, request.after_sequence)

    async def CancelGeneration(
        self,
        request: pb.CancelGenerationRequest,
        context: aio.ServicerContext[pb.CancelGenerationRequest, pb.CancelGenerationResponse],
    ) -> pb.CancelGenerationResponse:
        """End a generation; answers at once with the state that it met."""
        _check_id(request.request_id)
        state = self._engine.cancel(request.request_id, identity())
        return pb.CancelGenerationResponse(state=state_number(state))

    async def ListGenerations(
        self,
        request: pb.ListGenerationsRequest,
        context: aio.ServicerContext[pb.ListGenerationsRequest, pb.ListGenerationsResponse],
    ) -> pb.ListGenerationsResponse:
        """Answer a page of the caller's generations, to admins of everybody's."""
        everybody = Scope.ADMIN in record.get().caller.scopes
        return page(self._engine.summaries(None if everybody else identity()), request)

    async def GetCapabilities(
        self,
        request: pb.GetCapabilitiesRequest,
        context: aio.ServicerContext[pb.GetCapabilitiesRequest, pb.GetCapabilitiesResponse],
    ) -> pb.GetCapabilitiesResponse:
        """Answer what the loaded pipeline takes; UNAVAILABLE until it is loaded."""
        found = capabilities(
            self._engine.facts,
            self._config,
            self._engine.configuration,
            self._intake.limits(),
            len(self._engine.serving_groups),
        )
        return pb.GetCapabilitiesResponse(capabilities=found)

    async def GetConfiguration(
        self,
        request: pb.GetConfigurationRequest,
        context: aio.ServicerContext[pb.GetConfigurationRequest, pb.GetConfigurationResponse],
    ) -> pb.GetConfigurationResponse:
        """Answer what is in force, or what was under a revision, with every default filled in."""
        found = self._engine.configuration
        if request.HasField("revision"):
            found = self._engine.configuration_at(request.revision)
        return pb.GetConfigurationResponse(configuration=configuration_to_proto(found))

    async def Configure(
        self,
        request: pb.ConfigureRequest,
        context: aio.ServicerContext[pb.ConfigureRequest, pb.ConfigureResponse],
    ) -> pb.ConfigureResponse:
        """Change the configuration between two generations, or say what would become of it."""
        return await configure(self._engine, self._config, request, context.time_remaining())

    async def LoadAdapter(
        self,
        request: pb.LoadAdapterRequest,
        context: aio.ServicerContext[pb.LoadAdapterRequest, pb.LoadAdapterResponse],
    ) -> pb.LoadAdapterResponse:
        """Load an adapter on all ranks between two generations."""
        seconds_left = context.time_remaining()
        return await adapters.load(self._engine, self._adapter_folders, request, seconds_left)

    async def UnloadAdapter(
        self,
        request: pb.UnloadAdapterRequest,
        context: aio.ServicerContext[pb.UnloadAdapterRequest, pb.UnloadAdapterResponse],
    ) -> pb.UnloadAdapterResponse:
        """Remove an adapter from all ranks between two generations."""
        return await adapters.unload(self._engine, request, context.time_remaining())

    async def ListAdapters(
        self,
        request: pb.ListAdaptersRequest,
        context: aio.ServicerContext[pb.ListAdaptersRequest, pb.ListAdaptersResponse],
    ) -> pb.ListAdaptersResponse:
        """Answer what is loaded, and the files that could be."""
        return await adapters.listing(self._engine, self._adapter_folders)

    async def Tune(  # type: ignore[override]
        self, request: pb.TuneRequest, context: TuneContext
    ) -> None:
        """Have pictures made with and without caches, and stream how they compare."""
        await self._tuner.tune(request, context)

    def _utilization(self) -> float:
        """Say how full the service is: 1 where one more would be refused."""
        return self._engine.occupancy / (self._config.queue_capacity + self._config.groups)

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


def _check_id(request_id: str) -> None:
    problems: list[Problem] = []
    check_request_id(request_id, problems, required=True)
    if problems:
        raise InvalidRequest(tuple(problems))
    record.get().request_id = request_id


def _identified(request_id: str) -> tuple[tuple[str, str], ...]:
    """Name the generation in metadata; an id that no header can hold is known to its caller."""
    plain = request_id.isascii() and request_id.isprintable()
    # A longer one is refused; told in the headers, it would end the call before the refusal does.
    short = len(request_id) <= MAX_REQUEST_ID_CHARACTERS
    return ((REQUEST_ID_KEY, request_id),) if plain and short else ()
