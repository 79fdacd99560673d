"""A real gRPC server whose answers a test writes down beforehand, and the events to write."""

# ruff: noqa: ARG002, N802  # gRPC gives the methods their names and their arguments

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast.v1.capabilities_pb2 import Capabilities, Model
from ditcast.v1.diffusion_service_pb2 import (
    Adapter,
    AdapterFile,
    CancelGenerationRequest,
    CancelGenerationResponse,
    ConfigureRequest,
    ConfigureResponse,
    GenerateRequest,
    GenerateResponse,
    GetCapabilitiesRequest,
    GetCapabilitiesResponse,
    GetConfigurationRequest,
    GetConfigurationResponse,
    ListAdaptersRequest,
    ListAdaptersResponse,
    ListGenerationsRequest,
    ListGenerationsResponse,
    LoadAdapterRequest,
    LoadAdapterResponse,
    TuneRequest,
    TuneResponse,
    UnloadAdapterRequest,
    UnloadAdapterResponse,
    WatchGenerationRequest,
    WatchGenerationResponse,
)
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceServicer
from ditcast.v1.generation_pb2 import (
    CacheDecision,
    CacheReport,
    Completed,
    GenerationEvent,
    GenerationState,
    GenerationSummary,
    OutputChunk,
    OutputDigest,
    Queued,
    RankMemory,
    Receipt,
    ResolvedParameters,
    Started,
    StepCompleted,
    Timings,
)
from ditcast.v1.tuning_pb2 import TuneEvent

COMPUTED = CacheDecision.CACHE_DECISION_COMPUTED
CACHED = CacheDecision.CACHE_DECISION_CACHED
PRUNED = CacheDecision.CACHE_DECISION_PRUNED
DECISIONS = (COMPUTED, COMPUTED, CACHED, COMPUTED, CACHED)


class UntilCancelled:
    """In a script: wait for CancelGeneration, then end the stream as the contract says."""


@dataclass
class Once:
    """In a script: end the stream of the first reader that comes here with this status."""

    status: status_pb2.Status
    used: bool = False


Script = Sequence[GenerationEvent | status_pb2.Status | UntilCancelled | Once]
Context = grpc.aio.ServicerContext[Message, Message]


def status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    """Give a status with details."""
    packed = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed.details.add().Pack(detail)
    return packed


def ours(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    """Give the ErrorInfo that every status of the server carries."""
    return error_details_pb2.ErrorInfo(domain="ditcast", reason=reason, metadata=metadata)


async def abort(context: Context, packed: status_pb2.Status) -> None:
    """End a call with a status."""
    code = next(code for code in grpc.StatusCode if code.value[0] == packed.code)
    trailers = (("grpc-status-details-bin", packed.SerializeToString()),) if packed.details else ()
    await context.abort(code, packed.message, trailers)


NOT_YET = status(grpc.StatusCode.UNIMPLEMENTED, "not yet", ours("NOT_IN_THIS_VERSION"))


@dataclass
class ScriptedService(DiffusionServiceServicer):
    """Plays `script` for each generation, to any reader, and notes what it was asked."""

    script: Script = ()
    cancel_status: status_pb2.Status | None = None
    requests: list[GenerateRequest] = field(default_factory=list)
    watches: list[WatchGenerationRequest] = field(default_factory=list)
    rendered: list[str] = field(default_factory=list)
    """The id of each generation that was not known before."""
    known: set[str] = field(default_factory=set)
    watch_ends: list[status_pb2.Status] = field(default_factory=list)
    """Statuses for the next watches, before any event."""
    generations: list[GenerationSummary] = field(default_factory=list)
    lists: list[ListGenerationsRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    tune_script: Sequence[TuneEvent | status_pb2.Status] = ()
    tunes: list[TuneRequest] = field(default_factory=list)
    route: str | None = None
    """What a proxy before several servers puts into the first headers."""
    routes: list[str | None] = field(default_factory=list)
    """With which each call about a generation came."""
    request_came: asyncio.Event = field(default_factory=asyncio.Event)
    cancel_came: asyncio.Event = field(default_factory=asyncio.Event)
    streams_ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def Generate(
        self, request: GenerateRequest, context: Context
    ) -> AsyncIterator[GenerateResponse]:
        """Play the script."""
        await self._lead(context)
        self.requests.append(request)
        self.request_came.set()
        if request.request_id not in self.known:
            self.known.add(request.request_id)
            self.rendered.append(request.request_id)
        async for event in self._play(request.request_id, context):
            yield GenerateResponse(event=event)

    async def _lead(self, context: Context) -> None:
        """Note the route that came, and give the one that is to come back."""
        came = dict(context.invocation_metadata() or ())
        self.routes.append(str(came["ditcast-route"]) if "ditcast-route" in came else None)
        if self.route is not None:
            await context.send_initial_metadata((("ditcast-route", self.route),))

    async def _play(
        self, request_id: str, context: Context, after_sequence: int = 0
    ) -> AsyncIterator[GenerationEvent]:
        """Play what of the script comes after an event."""
        steps = sequence = 0
        try:
            for item in self.script:
                match item:
                    case status_pb2.Status():
                        await abort(context, item)
                    case Once(status=ends, used=False) if sequence >= after_sequence:
                        item.used = True
                        await abort(context, ends)
                    case UntilCancelled():
                        await self.cancel_came.wait()
                        info = ours("CANCELLED", steps_done=str(steps))
                        await abort(context, status(grpc.StatusCode.CANCELLED, "cancelled", info))
                    case GenerationEvent():
                        sequence += 1
                        event = GenerationEvent(request_id=request_id, sequence=sequence)
                        event.MergeFrom(item)
                        steps = event.step_completed.step or steps
                        if sequence > after_sequence:
                            yield event
        finally:
            self.streams_ended.set()

    async def CancelGeneration(
        self, request: CancelGenerationRequest, context: Context
    ) -> CancelGenerationResponse:
        """Note the cancel and let the stream that waits for it end."""
        await self._lead(context)
        if self.cancel_status is not None:
            await abort(context, self.cancel_status)
        self.cancelled.append(request.request_id)
        self.cancel_came.set()
        return CancelGenerationResponse(state=GenerationState.GENERATION_STATE_RUNNING)

    async def GetCapabilities(
        self, request: GetCapabilitiesRequest, context: Context
    ) -> GetCapabilitiesResponse:
        """Answer a little."""
        model = Model(id="starter", pipeline_class="QwenImagePipeline")
        capabilities = Capabilities(contract_version="1.0", model=model, world_size=2)
        capabilities.limits.num_inference_steps.minimum = 1
        capabilities.limits.num_inference_steps.maximum = 1000
        parameter = capabilities.parameters.add(name="prompt", required=True)
        parameter.maximum = 16384
        capabilities.cache_methods.add(name="db_prune", reason="not with context parallelism")
        return GetCapabilitiesResponse(capabilities=capabilities)

    async def GetConfiguration(
        self, request: GetConfigurationRequest, context: Context
    ) -> GetConfigurationResponse:
        """Answer a little."""
        configuration = Configuration(revision=7)
        configuration.cache.db_cache.fn_compute_blocks = 4
        return GetConfigurationResponse(configuration=configuration)

    async def WatchGeneration(
        self, request: WatchGenerationRequest, context: Context
    ) -> AsyncIterator[WatchGenerationResponse]:
        """Play the script for a generation that is known."""
        await self._lead(context)
        self.watches.append(request)
        if self.watch_ends:
            await abort(context, self.watch_ends.pop(0))
        if request.request_id not in self.known:
            await abort(context, status(grpc.StatusCode.NOT_FOUND, "no such id", ours("UNKNOWN")))
        events = self._play(request.request_id, context, request.after_sequence)
        async for event in events:
            yield WatchGenerationResponse(event=event)

    async def ListGenerations(
        self, request: ListGenerationsRequest, context: Context
    ) -> ListGenerationsResponse:
        """Answer pages, whose token is where the next one begins."""
        self.lists.append(request)
        first = int(request.page_token or 0)
        found = [
            each for each in self.generations if not request.states or each.state in request.states
        ]
        last = first + request.page_size
        token = str(last) if last < len(found) else ""
        return ListGenerationsResponse(generations=found[first:last], next_page_token=token)

    async def LoadAdapter(
        self, request: LoadAdapterRequest, context: Context
    ) -> LoadAdapterResponse:
        """Take any name; an adapter is a file of 3 MiB that changes the transformer."""
        adapter = Adapter(
            name=request.name,
            file=request.file,
            size_bytes=3 << 20,
            components=["transformer"],
        )
        self.adapters[request.name] = adapter
        return LoadAdapterResponse(adapter=adapter)

    async def UnloadAdapter(
        self, request: UnloadAdapterRequest, context: Context
    ) -> UnloadAdapterResponse:
        """Forget an adapter."""
        if self.adapters.pop(request.name, None) is None:
            await abort(context, status(grpc.StatusCode.NOT_FOUND, "no such adapter", ours("GONE")))
        return UnloadAdapterResponse()

    async def ListAdapters(
        self, request: ListAdaptersRequest, context: Context
    ) -> ListAdaptersResponse:
        """Answer what was loaded, and one file."""
        files = [AdapterFile(file="styles/ink.safetensors", size_bytes=3 << 20)]
        return ListAdaptersResponse(loaded=self.adapters.values(), available=files)

    async def Tune(self, request: TuneRequest, context: Context) -> AsyncIterator[TuneResponse]:
        """Play the script of Tunes."""
        self.tunes.append(request)
        for item in self.tune_script:
            if isinstance(item, status_pb2.Status):
                await abort(context, item)
            else:
                yield TuneResponse(event=item)

    async def Configure(self, request: ConfigureRequest, context: Context) -> ConfigureResponse:
        """Answer that there is no such call."""
        await abort(context, NOT_YET)
        return ConfigureResponse()


def queued(position: int = 0) -> GenerationEvent:
    """Give the first event of every log."""
    return GenerationEvent(queued=Queued(position=position))


def started(seed: int = 7, steps: int = len(DECISIONS)) -> GenerationEvent:
    """Give the event that tells the resolved parameters."""
    parameters = ResolvedParameters(
        prompt="a red cup", width=128, height=128, num_inference_steps=steps, seed=seed
    )
    return GenerationEvent(started=Started(parameters=parameters, world_size=1))


def step(
    number: int, decision: CacheDecision.ValueType = COMPUTED, total: int = len(DECISIONS)
) -> GenerationEvent:
    """Give the event of a step."""
    completed = StepCompleted(step=number, total_steps=total, cache_decision=decision)
    completed.step_duration.FromMilliseconds(120)
    completed.estimated_remaining.FromMilliseconds(120 * (total - number))
    return GenerationEvent(step_completed=completed)


def steps() -> list[GenerationEvent]:
    """Give the events of all steps."""
    return [step(number, decision) for number, decision in enumerate(DECISIONS, start=1)]


def chunks(data: bytes, index: int = 0, size: int = 1000) -> Iterator[GenerationEvent]:
    """Cut an output into events."""
    for offset in range(0, len(data), size) or (0,):
        yield chunk(data, offset, data[offset : offset + size], index)


def chunk(data: bytes, offset: int, part: bytes, index: int = 0) -> GenerationEvent:
    """Give the event of one chunk of `data`."""
    return GenerationEvent(
        output_chunk=OutputChunk(
            output_index=index,
            media_type="image/png",
            total_bytes=len(data),
            offset=offset,
            data=part,
        )
    )


def completed(*outputs: bytes) -> GenerationEvent:
    """Give the last event, with the receipt of the outputs."""
    digests = [
        OutputDigest(
            output_index=index,
            media_type="image/png",
            size_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
        )
        for index, data in enumerate(outputs)
    ]
    timings = Timings()
    timings.denoise.FromMilliseconds(600)
    timings.step_median.FromMilliseconds(120)
    timings.total.FromMilliseconds(700)
    return GenerationEvent(
        completed=Completed(
            receipt=Receipt(outputs=digests, deterministic=True),
            timings=timings,
            cache=CacheReport(computed_steps=[1, 2, 4], cached_steps=[3, 5]),
            memory=[RankMemory(rank=0, peak_bytes=3 << 20, free_bytes=5 << 30)],
        )
    )


def success(*outputs: bytes) -> list[GenerationEvent]:
    """Give the whole log of a generation that succeeds."""
    parts = [event for index, data in enumerate(outputs) for event in chunks(data, index)]
    return [queued(), started(), *steps(), *parts, completed(*outputs)]
