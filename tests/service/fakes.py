"""A `FakeEngine` that runs scripted generations: what the edge needs of the real one, no ranks."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ditcast_runtime.accepted import Submission
from ditcast_runtime.config import Adapter, Configuration, GenerationDefaults
from ditcast_runtime.errors import (
    AdapterNameTaken,
    GenerationCancelled,
    NotServing,
    RequestIdReused,
    RuntimeFailure,
    UnknownAdapter,
    UnknownGeneration,
    UnknownRevision,
)
from ditcast_runtime.events import (
    CacheDecision,
    Completed,
    Event,
    EventKind,
    OutputChunk,
    PromptUse,
    Queued,
    RankMemory,
    RequestWarning,
    Started,
    StepCompleted,
    Timings,
    TransformerDecision,
    cache_report,
)
from ditcast_runtime.generation import OutputDigest, Parameters, Receipt, SeparateCfg, State
from ditcast_runtime.ledger import Vitals
from ditcast_runtime.messages import (
    Facts,
    ParameterFact,
    ParameterKind,
    Support,
    TransformerFact,
)
from ditcast_runtime.settings import CacheSettings, resolve_parallelism
from ditcast_runtime.summary import Summary

Script = Sequence[EventKind | RuntimeFailure | Exception | float | asyncio.Event]
"""What a generation does: events, seconds to wait, things to wait for, what it fails with."""


def parameter(
    name: str,
    *kinds: ParameterKind,
    default: object = None,
    own: bool = True,
    nullable: bool = True,
) -> ParameterFact:
    """Describe one parameter of the fake pipeline."""
    return ParameterFact(
        name=name,
        kinds=kinds,
        nullable=nullable,
        required=False,
        default=default,  # type: ignore[arg-type]
        in_pipeline_kwargs=not own,
    )


PARAMETERS = (
    parameter("prompt", ParameterKind.STR),
    parameter("negative_prompt", ParameterKind.STR),
    parameter("true_cfg_scale", ParameterKind.FLOAT, default=4.0, nullable=False),
    parameter("width", ParameterKind.INT),
    parameter("height", ParameterKind.INT),
    parameter("num_inference_steps", ParameterKind.INT, default=50, nullable=False),
    parameter("sigmas", ParameterKind.FLOAT_LIST),
    parameter("guidance_scale", ParameterKind.FLOAT),
    parameter("num_images_per_prompt", ParameterKind.INT, default=1, nullable=False),
    parameter("max_sequence_length", ParameterKind.INT, default=512, own=False, nullable=False),
    parameter("strength", ParameterKind.FLOAT, default=0.6, own=False),
    parameter("mode", ParameterKind.STR, own=False),
    parameter("layers", ParameterKind.INT_LIST, own=False),
)

FACTS = Facts(
    pipeline_class="QwenImagePipeline",
    weights_digest="ab" * 32,
    device="cpu",
    device_name="cpu",
    dtype="float32",
    threads=1,
    library_versions={"torch": "2.13.0"},
    parameters=PARAMETERS,
    transformers=(
        TransformerFact(name="transformer", class_name="Transformer", num_blocks=8, num_heads=4),
    ),
    size_multiple=16,
    shard_multiple=1,
    default_width=128,
    default_height=128,
    separate_cfg=SeparateCfg.TRUE_CFG,
    guidance_embeds=False,
    cancellable=True,
    defaults=GenerationDefaults(),
    cache_methods=(
        Support(name="db_cache", possible=True),
        Support(name="db_prune", possible=False, reason="DBPrune cannot do it here"),
    ),
    parallel_modes=(Support(name="ulysses", possible=True),),
    deterministic=True,
)

CONFIGURATION = Configuration(
    revision=1,
    cache=CacheSettings(),
    parallelism=resolve_parallelism(None, 1),
    quantize=None,
    attention_backend=None,
    defaults=GenerationDefaults(num_inference_steps=20),
)


def step(number: int, total: int) -> StepCompleted:
    """Make one computed step."""
    return StepCompleted(
        step=number,
        total_steps=total,
        timestep=1000.0 - number,
        sigma=1.0 - number / total,
        step_duration=0.01,
        estimated_remaining=0.01 * (total - number),
        transformers=(TransformerDecision(name="transformer", decision=CacheDecision.COMPUTED),),
    )


def completed(parameters: Parameters, data: bytes) -> Completed:
    """Make the last event of a generation whose one output is `data`."""
    digest = OutputDigest(output_index=0, media_type="image/png", size_bytes=len(data), sha256=b"0")
    receipt = Receipt(
        parameters=parameters,
        model_id="ditcast/qwen-image-starter",
        model_revision=None,
        weights_digest="ab" * 32,
        library_versions={"torch": "2.13.0"},
        world_size=1,
        threads_per_rank=1,
        device="cpu",
        dtype="float32",
        configuration=CONFIGURATION,
        sigmas_used=(1.0,),
        outputs=(digest,),
        deterministic=True,
    )
    timings = Timings(queued=0, prepare=0.1, denoise=0.2, decode=0.1, encode=0.01, total=0.41)
    return Completed(
        receipt=receipt,
        timings=timings,
        prompts=PromptUse(encoded=1),
        cache=cache_report([step(1, 2), step(2, 2)]),
        memory=(RankMemory(rank=0, peak_bytes=1, free_bytes=2),),
    )


def chunks(data: bytes, size: int) -> list[OutputChunk]:
    """Cut one output as the engine does."""
    return [
        OutputChunk(
            output_index=0,
            media_type="image/png",
            total_bytes=len(data),
            offset=offset,
            data=data[offset : offset + size],
        )
        for offset in range(0, len(data), size)
    ]


def success(parameters: Parameters, data: bytes = b"picture", chunk: int = 2**18) -> Script:
    """Script a generation of two steps that ends well."""
    started = Started(parameters=parameters, configuration_revision=1, world_size=1, epoch=1)
    return [
        Queued(position=0),
        started,
        step(1, 2),
        step(2, 2),
        *chunks(data, chunk),
        completed(parameters, data),
    ]


@dataclass
class FakeGeneration:
    """One scripted generation with one reader."""

    request_id: str
    digest: bytes
    script: Script
    heartbeat_interval: float
    state: State = State.QUEUED
    last_sequence: int = 0
    steps_done: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its reader leaves, however that comes."""

    async def follow(self, after_sequence: int = 0) -> AsyncIterator[Event | None]:
        """Play the script."""
        assert after_sequence == 0
        self.state = State.RUNNING
        try:
            for entry in self.script:
                match entry:
                    case Exception():
                        raise entry
                    case float() | int():
                        await asyncio.sleep(entry)
                    case asyncio.Event():
                        async for beat in self._wait(entry):
                            yield beat
                    case _:
                        self.last_sequence += 1
                        self.steps_done += isinstance(entry, StepCompleted)
                        yield Event(sequence=self.last_sequence, time=datetime.now(UTC), kind=entry)
            self.state = State.SUCCEEDED
        finally:
            self.left.set()

    async def _wait(self, event: asyncio.Event) -> AsyncIterator[None]:
        while not event.is_set():
            try:
                await asyncio.wait_for(event.wait(), self.heartbeat_interval)
            except TimeoutError:
                yield None


class FakeEngine:
    """Accepts every generation and plays `script` for it."""

    def __init__(self) -> None:
        self.serving = True
        self.facts_now = FACTS
        self.configuration = CONFIGURATION
        self.initial_configuration = CONFIGURATION
        self.history = {CONFIGURATION.revision: CONFIGURATION}
        self.occupancy = 0
        self.vitals = Vitals(running=0, bytes_in_flight=0, readers=0)
        self.serving_groups = (0,)
        self.writing = asyncio.Lock()
        self.between_generations = asyncio.Event()
        self.between_generations.set()
        self.writer_waits = asyncio.Event()
        self.change_failure: RuntimeFailure | None = None
        self.loaded: dict[str, Adapter] = {}
        self.script: Callable[[Parameters], Script] = success
        self.refusal: RuntimeFailure | None = None
        self.heartbeat_interval = 0.05
        self.generations: dict[str, FakeGeneration] = {}
        self.identities: list[str] = []
        self.submitted: list[tuple[Parameters, tuple[RequestWarning, ...], float | None]] = []

    @property
    def facts(self) -> Facts:
        """The facts, once it serves."""
        if not self.serving:
            raise NotServing("LOADING", timedelta(seconds=3))
        return self.facts_now

    def configuration_at(self, revision: int) -> Configuration:
        """Give what was in force under a revision."""
        if revision not in self.history:
            raise UnknownRevision(revision)
        return self.history[revision]

    async def configure(self, plan: Callable[[Configuration], Configuration]) -> Configuration:
        """Put a change into force once no generation runs, one writer at a time."""
        async with self.writing:
            current = self.configuration
            wanted = dataclasses.replace(plan(current), revision=current.revision)
            if wanted == current:
                return current
            self.writer_waits.set()
            await self.between_generations.wait()
            if self.change_failure is not None:
                raise self.change_failure
            self.configuration = dataclasses.replace(wanted, revision=current.revision + 1)
            self.history[self.configuration.revision] = self.configuration
            return self.configuration

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """What is loaded."""
        return tuple(self.loaded.values())

    async def load_adapter(self, adapter: Adapter) -> Adapter:
        """Take an adapter once no generation runs."""
        if adapter.name in self.loaded:
            raise AdapterNameTaken(adapter.name, self.loaded[adapter.name].file)
        await self.between_generations.wait()
        if self.change_failure is not None:
            raise self.change_failure
        self.loaded[adapter.name] = dataclasses.replace(adapter, components=("transformer",))
        return self.loaded[adapter.name]

    async def unload_adapter(self, name: str) -> None:
        """Let go of an adapter once no generation runs."""
        if name not in self.loaded:
            raise UnknownAdapter(name)
        await self.between_generations.wait()
        del self.loaded[name]

    def submit(self, submission: Submission) -> FakeGeneration:
        """Take a generation, or refuse it as it was told to."""
        request_id, digest = submission.request_id, submission.digest
        parameters = submission.parameters
        if self.refusal is not None:
            raise self.refusal
        self.identities.append(submission.identity)
        self.submitted.append((parameters, submission.warnings, submission.timeout))
        made = FakeGeneration(request_id, digest, self.script(parameters), self.heartbeat_interval)
        self.generations[request_id] = made
        return made

    def same(self, request_id: str, identity: str, digest: bytes) -> FakeGeneration | None:  # noqa: ARG002
        """Give a generation that was submitted before."""
        known = self.generations.get(request_id)
        if known is not None and known.digest != digest:
            raise RequestIdReused(request_id)
        if known is None and not self.serving:
            raise NotServing("LOADING", timedelta(seconds=3))
        return known

    def find(self, request_id: str, identity: str) -> FakeGeneration:  # noqa: ARG002
        """Give a generation that was submitted before."""
        if request_id not in self.generations:
            raise UnknownGeneration(request_id)
        return self.generations[request_id]

    def summaries(self, identity: str | None) -> list[Summary]:  # noqa: ARG002
        """List nothing; the tests of lists have the real ledger."""
        return []

    def cancel(self, request_id: str, identity: str) -> State:  # noqa: ARG002
        """Answer the state of a generation and end its script."""
        if request_id not in self.generations:
            raise UnknownGeneration(request_id)
        met = self.generations[request_id].state
        self.generations[request_id].script = [GenerationCancelled(0)]
        return met
