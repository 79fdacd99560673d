"""The only door for the service: submit a generation, follow its events, cancel it.

Everything that must survive a crash of the ranks lives here: the queue, each generation's log,
deadlines, the configuration in force and the epoch counter. The ranks are behind `group`.
"""

from __future__ import annotations

import asyncio
import enum
import shutil
import tempfile
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import structlog

from ditcast_runtime.accepted import Generation
from ditcast_runtime.config import Configuration, EngineConfig, GenerationDefaults
from ditcast_runtime.delivery import Delivery, Encode, Order, RunRecord
from ditcast_runtime.errors import (
    ConfigError,
    DeadlineExceeded,
    GenerationCancelled,
    NanOutput,
    NotServing,
    OutOfMemory,
    PipelineFailed,
    PipelineRefused,
    QueueFull,
    RanksLost,
    RequestIdReused,
    RuntimeFailure,
    UnknownGeneration,
)
from ditcast_runtime.events import Queued, RequestWarning, Started, StepCompleted
from ditcast_runtime.generation import OutputDigest, Parameters, Receipt, State
from ditcast_runtime.group import CannotLoad, Group, GroupLost, ReceivedOutput
from ditcast_runtime.messages import (
    Denoising,
    Ended,
    Facts,
    Failed,
    FailureKind,
    Outcome,
    Run,
    Step,
)
from ditcast_runtime.scheduler import Durations, Scheduler
from ditcast_runtime.settings import Acceleration, Problem, resolve_parallelism

log = structlog.get_logger()

_UNKNOWN_SECONDS = 5.0
"""What a generation, or a start, is taken to last before any was measured."""

_GENERATION = "generation"
"""The kind under which whole generations are measured; steps have kinds of their own."""


class Phase(enum.StrEnum):
    """Where the service is in its life."""

    LOADING = "loading"
    WARMING_UP = "warming_up"
    SERVING = "serving"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"


class Engine:
    """Runs accepted generations one after another on the group, and replaces a lost group."""

    def __init__(
        self, config: EngineConfig, encode: Encode, *, json_logs: bool, log_level: str
    ) -> None:
        self._config = config
        self._json_logs = json_logs
        self._log_level = log_level
        self._acceleration = config.acceleration
        self._facts: Facts | None = None
        self._listeners: list[Callable[[Phase], None]] = []
        self._scheduler: Scheduler[Generation] = Scheduler(config.queue_capacity)
        self._durations = Durations()
        self._known: OrderedDict[str, Generation] = OrderedDict()
        self._running: Generation | None = None
        self._group: Group | None = None
        self._epoch = 0
        self._number = 0
        self._losses: deque[float] = deque(maxlen=config.crash_loop_losses)
        self._start_seconds = _UNKNOWN_SECONDS
        self._work = asyncio.Event()
        self._pool = ThreadPoolExecutor(config.encoder_threads, thread_name_prefix="encode")
        self._delivery = Delivery(encode, self._pool, config.chunk_bytes)
        # Private: the rendezvous file in it lets whoever can write it into the group.
        self._folder = Path(tempfile.mkdtemp(prefix="ditcast-"))
        self._supervisor: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._serving: asyncio.Future[None] = loop.create_future()
        self.phase = Phase.LOADING
        self.closed: asyncio.Future[None] = loop.create_future()

    async def start(self) -> None:
        """Start the group and return at the first SERVING.

        Raises:
            ConfigError: the ranks cannot serve this model with these settings.
            RanksLost: they died before they could.
            NotServing: the engine was stopped meanwhile.
        """
        self._supervisor = asyncio.create_task(self._supervise())
        await self._serving

    async def stop(self) -> None:
        """Refuse new work, finish what runs and waits within the grace, end the rest, free the ranks."""
        was_serving = self.phase in {Phase.SERVING, Phase.RESTARTING}
        self._set_phase(Phase.DRAINING)
        self._work.set()
        if self._supervisor is not None:
            # It ends by itself once the queue is empty and the idle ranks have left.
            grace = self._config.grace if was_serving else 0.0
            await asyncio.wait({self._supervisor}, timeout=grace)
            self._end_all(NotServing("DRAINING", self._estimate_start()))
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        await self._delivery.idle()
        self._pool.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._close(NotServing("STOPPED", self._estimate_start()), normal=True)

    def on_phase(self, listener: Callable[[Phase], None]) -> None:
        """Call `listener` with the phase now and at each change."""
        self._listeners.append(listener)
        listener(self.phase)

    @property
    def facts(self) -> Facts:
        """What is known of the loaded pipeline; NotServing before the first SERVING."""
        if self._facts is None:
            raise NotServing(self.phase.name, self._estimate_start())
        return self._facts

    @property
    def configuration(self) -> Configuration:
        """What is in force."""
        return Configuration(
            revision=1,
            cache=self._acceleration.cache,
            parallelism=self._resolved().parallelism or resolve_parallelism(None, 1),
            quantize=self._acceleration.quantize,
            attention_backend=self._acceleration.attention_backend,
            defaults=self._facts.defaults if self._facts else GenerationDefaults(),
        )

    @property
    def queue_depth(self) -> int:
        """Generations that wait."""
        return len(self._scheduler)

    def submit(
        self,
        request_id: str,
        digest: bytes,
        parameters: Parameters,
        warnings: tuple[RequestWarning, ...],
        timeout: float | None,
    ) -> Generation:
        """Accept a generation, or give the one that this id stands for already.

        Args:
            request_id: the caller's idempotency key.
            digest: of the request's content, to tell the same from other content.
            parameters: everything settled.
            warnings: what its reader should know once it starts.
            timeout: seconds after which it ends with DeadlineExceeded; None: no limit.

        Raises:
            RequestIdReused: the id stands for other content.
            NotServing: before the first SERVING and while draining.
            QueueFull: nothing more may wait.
        """
        known = self._known.get(request_id)
        if known is not None:
            if known.digest != digest:
                raise RequestIdReused(request_id)
            return known
        self._check_accepting()
        generation = Generation(
            request_id, digest, parameters, warnings, self._abandon, self._config.heartbeat_interval
        )
        if timeout is not None:
            loop = asyncio.get_running_loop()
            generation.deadline = loop.call_later(timeout, self._expire, generation)
        self._known[request_id] = generation
        self._scheduler.add(generation)
        generation.log.append(self._queued(len(self._scheduler) - 1))
        self._work.set()
        return generation

    def cancel(self, request_id: str) -> State:
        """Cancel a generation, and answer the state it met; UnknownGeneration if there is none."""
        generation = self._known.get(request_id)
        if generation is None:
            raise UnknownGeneration(request_id)
        met = generation.state
        self._abandon(generation)
        return met

    # What follows runs on the engine's own tasks and timers.

    async def _supervise(self) -> None:
        """Keep a group serving until the engine drains: one lost group after another."""
        while not self.closed.done():
            self._epoch += 1
            self._group = Group(
                self._config,
                self._resolved(),
                self._epoch,
                self._folder,
                json_logs=self._json_logs,
                log_level=self._log_level,
                on_warming_up=self._warming_up,
                on_lost=self._work.set,
            )
            try:
                await self._serve(self._group)
                await self._group.stop()
                return
            except GroupLost as lost:
                self._lost(lost)
            except CannotLoad as cannot:
                self._close(ConfigError((Problem("model", str(cannot)),)))
            except Exception as error:  # the engine's outermost frame: a bug must not hang callers
                log.error("the engine failed", exc_info=error)
                self._close(error)
            finally:
                await self._group.kill()

    async def _serve(self, group: Group) -> None:
        """Start the group, then run what waits; returns when it has drained."""
        began = time.monotonic()
        self._facts = await group.start()
        self._start_seconds = time.monotonic() - began
        log.info("serving", epoch=group.epoch, seconds=round(self._start_seconds, 1))
        if self.phase is not Phase.DRAINING:
            self._set_phase(Phase.SERVING)
        if not self._serving.done():
            self._serving.set_result(None)
        while (generation := await self._next(group)) is not None:
            await self._run(group, generation)

    async def _next(self, group: Group) -> Generation | None:
        """Wait for the next generation; None once the engine drains and nothing waits."""
        while True:
            if group.explanation:
                raise GroupLost(group.explanation)
            generation = self._scheduler.take()
            if generation is not None:
                self._running = generation
                self._tell_positions()
                return generation
            if self.phase is Phase.DRAINING:
                return None
            self._work.clear()
            await self._work.wait()

    async def _run(self, group: Group, generation: Generation) -> None:
        """Run one generation on the group until every rank is free again."""
        await self._delivery.place()
        run = RunRecord()
        delivering = False
        try:
            if not generation.state.final:
                await self._execute(group, generation, run)
                delivering = self._finish(generation, run)
        finally:
            if not delivering:
                run.discard_output()
                self._delivery.free()
        self._running = None

    async def _execute(self, group: Group, generation: Generation, run: RunRecord) -> None:
        self._number += 1
        generation.number = self._number
        self._start(group, generation)
        command = Run(
            epoch=group.epoch,
            number=self._number,
            request_id=generation.request_id,
            parameters=generation.parameters,
        )
        reports = group.run(command, self._step_limit(generation))
        async with aclosing(reports):
            async for report in reports:
                self._take_report(generation, run, report)

    def _start(self, group: Group, generation: Generation) -> None:
        generation.state = State.RUNNING
        generation.started_at = time.monotonic()
        generation.log.append(
            Started(
                parameters=generation.parameters,
                configuration_revision=self.configuration.revision,
                world_size=self._config.world_size,
                epoch=group.epoch,
            )
        )
        for warning in generation.warnings:
            generation.log.append(warning)

    def _take_report(
        self,
        generation: Generation,
        run: RunRecord,
        report: Denoising | Step | ReceivedOutput | Failed | Ended,
    ) -> None:
        match report:
            case Denoising():
                run.sigmas, run.prepare_seconds = report.sigmas, report.prepare_seconds
            case Step():
                self._durations.record(_step_kind(generation.parameters), report.seconds)
                self._add_step(generation, report)
            case ReceivedOutput():
                run.output = report
            case Failed():
                run.failures.append(report)
            case Ended():
                run.ended.append(report)

    def _add_step(self, generation: Generation, report: Step) -> None:
        done = sum(step.step_duration for step in generation.steps) + report.seconds
        event = StepCompleted(
            step=report.step,
            total_steps=report.total_steps,
            timestep=report.timestep,
            sigma=report.sigma,
            step_duration=report.seconds,
            estimated_remaining=done / report.step * (report.total_steps - report.step),
            transformers=report.transformers,
        )
        generation.steps.append(event)
        generation.log.append(event)

    def _finish(self, generation: Generation, run: RunRecord) -> bool:
        """All ranks are free: begin to deliver the output, or say why there is none.

        Gives whether the output is on its way.
        """
        outcome = run.ended[0].outcome
        if outcome is Outcome.CANCELLED:
            self._end(generation, GenerationCancelled(generation.steps_done))
        elif outcome is not Outcome.DONE:
            self._end(generation, _failure(generation.request_id, run.failures))
        else:
            self._losses.clear()
            self._durations.record(_GENERATION, time.monotonic() - generation.started_at)
            if not generation.state.final:
                order = Order(
                    generation=generation,
                    run=run,
                    receipt=lambda digests: self._receipt(generation, run, digests),
                    succeeded=self._succeed,
                    failed=self._end,
                )
                self._delivery.begin(order)
                return True
        return False

    def _receipt(
        self, generation: Generation, run: RunRecord, outputs: tuple[OutputDigest, ...]
    ) -> Receipt:
        configuration = self.configuration
        return Receipt(
            parameters=generation.parameters,
            model_id=self._config.model_id,
            model_revision=self._config.model_revision or None,
            weights_digest=self.facts.weights_digest,
            library_versions=self.facts.library_versions,
            world_size=self._config.world_size,
            threads_per_rank=self.facts.threads,
            device=self.facts.device,
            dtype=self.facts.dtype,
            configuration=configuration,
            sigmas_used=run.sigmas,
            outputs=outputs,
            deterministic=self.facts.deterministic,
        )

    def _lost(self, lost: GroupLost) -> None:
        """End what ran on a lost group, and give up where groups are lost again and again."""
        log.error("the ranks were lost", epoch=self._epoch, explanation=lost.explanation)
        failure = RanksLost(self._epoch, lost.explanation, self._estimate_start())
        if self._running is not None:
            self._end(self._running, failure)
            self._running = None
        now = time.monotonic()
        self._losses.append(now)
        crash_loop = len(self._losses) == self._losses.maxlen
        if not self._serving.done():
            self._close(failure)
        elif crash_loop and now - self._losses[0] < self._config.crash_loop_window:
            self._close(failure)
        elif self.phase is not Phase.DRAINING:
            self._set_phase(Phase.RESTARTING)

    def _close(self, why: Exception, *, normal: bool = False) -> None:
        """End everything for good; `closed` tells whoever runs the engine, with why if it failed."""
        self._end_all(NotServing("STOPPED", self._estimate_start()))
        self._set_phase(Phase.STOPPED)
        if not self._serving.done():
            self._serving.set_exception(why)
            normal = True
        if self.closed.done():
            return
        if normal:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(why)

    def _end_all(self, failure: RuntimeFailure) -> None:
        running = [self._running] if self._running is not None else []
        for generation in [*self._scheduler, *running]:
            self._end(generation, failure)

    def _succeed(self, generation: Generation, output_bytes: int) -> None:
        """Close the log of a generation whose last event is written; keep it for other readers."""
        if generation.log.end():
            generation.state = State.SUCCEEDED
            generation.output_bytes = output_bytes
            self._retire(generation)

    def _end(self, generation: Generation, failure: RuntimeFailure) -> None:
        """End a generation without a result; nothing if it has ended: the first into the log wins."""
        if not generation.log.end(failure):
            return
        stopped = isinstance(failure, (GenerationCancelled, DeadlineExceeded))
        generation.state = State.CANCELLED if stopped else State.FAILED
        if self._scheduler.remove(generation):
            self._tell_positions()
        elif generation is self._running and self._group is not None:
            self._group.cancel(generation.number)
        if isinstance(failure, (RanksLost, NotServing)):
            # Ended UNAVAILABLE: the same id may be sent again.
            self._known.pop(generation.request_id, None)
        self._retire(generation)

    def _retire(self, generation: Generation) -> None:
        if generation.deadline is not None:
            generation.deadline.cancel()
        log.info(
            "generation ended",
            request_id=generation.request_id,
            state=str(generation.state),
            steps=generation.steps_done,
            seconds=round(time.monotonic() - generation.accepted_at, 3),
        )
        asyncio.get_running_loop().call_later(self._config.retention, self._forget, generation)
        finished = [known for known in self._known.values() if known.state.final]
        kept = sum(known.output_bytes for known in finished)
        for known in finished:
            if kept <= self._config.retention_bytes:
                break
            kept -= known.output_bytes
            self._forget(known)

    def _forget(self, generation: Generation) -> None:
        if self._known.get(generation.request_id) is generation:
            del self._known[generation.request_id]

    def _abandon(self, generation: Generation) -> None:
        self._end(generation, GenerationCancelled(generation.steps_done))

    def _expire(self, generation: Generation) -> None:
        self._end(generation, DeadlineExceeded(generation.steps_done))

    def _check_accepting(self) -> None:
        if self.phase not in {Phase.SERVING, Phase.RESTARTING}:
            raise NotServing(self.phase.name, self._estimate_start())
        if self._scheduler.full:
            retry = timedelta(seconds=self._generation_seconds())
            raise QueueFull(len(self._scheduler), self._scheduler.capacity, retry)

    def _tell_positions(self) -> None:
        for position, generation in enumerate(self._scheduler):
            generation.log.append(self._queued(position))

    def _queued(self, position: int) -> Queued:
        seconds = self._durations.median(_GENERATION)
        if seconds is None:
            return Queued(position=position)
        ahead = position + (1 if self._running is not None else 0)
        return Queued(position=position, estimated_wait=ahead * seconds)

    def _generation_seconds(self) -> float:
        return self._durations.median(_GENERATION) or _UNKNOWN_SECONDS

    def _estimate_start(self) -> timedelta:
        return timedelta(seconds=self._start_seconds)

    def _step_limit(self, generation: Generation) -> float | None:
        median = self._durations.median(_step_kind(generation.parameters))
        if median is None:
            return None
        return max(self._config.step_timeout_floor, self._config.step_timeout_factor * median)

    def _resolved(self) -> Acceleration:
        """Give the acceleration with every degree settled; no parallelism on one rank."""
        world_size = self._config.world_size
        parallelism = (
            resolve_parallelism(self._acceleration.parallelism, world_size)
            if world_size > 1
            else None
        )
        return Acceleration(
            cache=self._acceleration.cache,
            parallelism=parallelism,
            quantize=self._acceleration.quantize,
            attention_backend=self._acceleration.attention_backend,
        )

    def _warming_up(self) -> None:
        if self.phase is Phase.LOADING:
            self._set_phase(Phase.WARMING_UP)

    def _set_phase(self, phase: Phase) -> None:
        self.phase = phase
        for listener in self._listeners:
            listener(phase)


def _step_kind(parameters: Parameters) -> tuple[object, ...]:
    """Tell what makes steps take equally long."""
    return (parameters.width, parameters.height, parameters.num_images, parameters.cache)


def _failure(request_id: str, failures: list[Failed]) -> RuntimeFailure:
    """Turn what the ranks reported into what ended the generation; the types decide."""
    kinds = {failure.kind for failure in failures}
    first = failures[0]
    if FailureKind.OUT_OF_MEMORY in kinds:
        return OutOfMemory(
            tuple(sorted(f.rank for f in failures if f.kind is FailureKind.OUT_OF_MEMORY))
        )
    if FailureKind.REFUSED in kinds:
        return PipelineRefused(first.message)
    error_id = uuid.uuid4().hex
    log.error(
        "generation failed on the ranks",
        request_id=request_id,
        error_id=error_id,
        ranks=[failure.rank for failure in failures],
        error_type=first.error_type,
        error=first.message,
        step=first.step,
    )
    if FailureKind.NAN_OUTPUT in kinds:
        return NanOutput(error_id)
    return PipelineFailed(error_id, first.error_type, first.step)
