"""The only door for the service: submit a generation, follow its events, cancel it.

Everything that must survive a crash of the ranks is behind it in this process: the `ledger` of
accepted generations, and the `dispatcher` that keeps a group of ranks serving.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from ditcast_runtime.accepted import Generation, Submission
from ditcast_runtime.change import Change, Pending
from ditcast_runtime.config import (
    Adapter,
    Configuration,
    EngineConfig,
    first_configuration,
    needs_reload,
)
from ditcast_runtime.delivery import Delivery, Encode
from ditcast_runtime.dispatcher import Dispatcher
from ditcast_runtime.errors import (
    AdapterNameTaken,
    AdapterRefused,
    ConfigError,
    NotServing,
    RanksLost,
    UnknownAdapter,
    UnknownRevision,
)
from ditcast_runtime.generation import OutputDigest, Receipt, State
from ditcast_runtime.group import Group
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.loaded_adapters import AdapterChange, LoadedAdapters
from ditcast_runtime.messages import Facts, Loading, WarmingUp
from ditcast_runtime.preview_delivery import EncodePreview, PreviewDelivery
from ditcast_runtime.receipts import make_receipt
from ditcast_runtime.runner import Runner
from ditcast_runtime.summary import Summary
from ditcast_runtime.timings import Starts, stage_text

__all__ = ["Encode", "Engine", "Generation", "Phase", "Submission"]

log = structlog.get_logger()

_KEPT_CONFIGURATIONS = 20
"""Configurations that can be asked for by revision, the current one too."""


class Phase(enum.StrEnum):
    """Where the service is in its life."""

    LOADING = "loading"
    WARMING_UP = "warming_up"
    SERVING = "serving"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"


class Engine:
    """Accepts generations and runs them one after another."""

    def __init__(
        self,
        config: EngineConfig,
        encode: Encode,
        encode_preview: EncodePreview,
        *,
        json_logs: bool,
        log_level: str,
    ) -> None:
        self._config = config
        self._json_logs = json_logs
        self._log_level = log_level
        self._configurations = [first_configuration(config)]
        self._writing = asyncio.Lock()
        self._initial = self._configurations[0]
        self._facts: Facts | None = None
        self._listeners: list[Callable[[Phase], None]] = []
        self._loading_listeners: list[Callable[[Loading], None]] = []
        self._starts = Starts()
        self._stage = ""
        self._pool = ThreadPoolExecutor(config.encoder_threads, thread_name_prefix="encode")
        # Private: whoever could write the rendezvous file in it could join the group.
        self._folder = Path(tempfile.mkdtemp(prefix="ditcast-"))
        self._ledger = Ledger(config, self._folder, self._leave)
        self._delivery = Delivery(encode, self._pool, config.chunk_bytes, self._starts)
        self._adapters = LoadedAdapters(config.adapters)
        self._previews = PreviewDelivery(encode_preview, self._pool)
        runner = Runner(
            config,
            self._ledger,
            self._delivery,
            self._previews,
            lambda: self.configuration,
            self._receipt,
            self._adapters.hold,
        )
        self._dispatcher = Dispatcher(
            config,
            self._ledger,
            runner,
            self._adapters,
            make_group=self._make_group,
            configuration=lambda: self.configuration,
            on_serving=self._serves,
            on_restarting=self._restarts,
        )
        self._task: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._serving: asyncio.Future[None] = loop.create_future()
        self.phase = Phase.LOADING
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done when the engine has stopped; with an exception when it gave up after it served."""

    async def start(self) -> None:
        """Start the group and return at the first SERVING.

        Raises:
            ConfigError: the ranks cannot serve this model with these settings.
            RanksLost: they died before they could.
            NotServing: the engine was stopped meanwhile.
        """
        self._task = asyncio.create_task(self._supervise())
        await self._serving

    async def stop(self) -> None:
        """Refuse new work, finish the rest within the grace, end what is left, free the ranks."""
        busy = self.phase in {Phase.SERVING, Phase.RESTARTING}
        self._set_phase(Phase.DRAINING)
        self._dispatcher.draining = True
        self._ledger.work.set()
        if self._task is not None:
            # It ends by itself once nothing waits and the idle ranks have left.
            await asyncio.wait({self._task}, timeout=self._config.grace if busy else 0.0)
            self._ledger.end_all(NotServing("DRAINING", self._dispatcher.start_estimate))
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._delivery.idle()
        await self._previews.idle()
        self._close(None)

    def on_loading(self, listener: Callable[[Loading], None]) -> None:
        """Call `listener` with each sign of progress of a rank that loads."""
        self._loading_listeners.append(listener)

    def on_phase(self, listener: Callable[[Phase], None]) -> None:
        """Call `listener` with the phase now and at each change."""
        self._listeners.append(listener)
        listener(self.phase)

    @property
    def facts(self) -> Facts:
        """What is known of the loaded pipeline; NotServing before the first SERVING."""
        if self._facts is None:
            raise self._not_serving()
        return self._facts

    @property
    def configuration(self) -> Configuration:
        """What is in force."""
        return self._configurations[-1]

    @property
    def initial_configuration(self) -> Configuration:
        """What the server started with."""
        return self._initial

    def configuration_at(self, revision: int) -> Configuration:
        """Give one of the last 20 configurations; UnknownRevision for any other."""
        for configuration in self._configurations:
            if configuration.revision == revision:
                return configuration
        raise UnknownRevision(revision)

    async def configure(self, plan: Callable[[Configuration], Configuration]) -> Configuration:
        """Put another configuration into force, on all ranks or none, between two generations.

        One writer at a time: `plan` is called with the current configuration when the caller's turn
        has come, so what it compares still holds; it returns the wanted one, complete, whose
        revision is ignored. Equal content changes nothing. Whoever is cancelled while it waits
        leaves the old configuration in force.

        Raises:
            ChangeRefused: the ranks refused it.
            ReloadFailed: new ranks could not be had with it.
            NotServing: before the first SERVING and while draining.
        """
        async with self._writing:
            self._check_accepting()
            current = self.configuration
            wanted = dataclasses.replace(plan(current), revision=current.revision)
            if wanted != current:
                change = Change(wanted, reload=needs_reload(current, wanted), commit=self._commit)
                await self._put_into_force(change)
            return self.configuration

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Those that are loaded, in the order of loading."""
        return self._adapters.all

    async def load_adapter(self, adapter: Adapter) -> Adapter:
        """Load an adapter on all ranks or none, once no generation runs; give what is loaded.

        Raises:
            AdapterNameTaken: another file is loaded under its name.
            AdapterRefused: the pipeline cannot hold it.
            OutOfMemory: there is too little for it.
            NotServing: before the first SERVING and while draining.
        """
        async with self._writing:
            self._check_accepting()
            if not self.facts.adapters_supported:
                raise AdapterRefused(adapter.name, f"{self.facts.pipeline_class} takes no adapters")
            known = self._adapters.get(adapter.name)
            if known is None:
                await self._put_into_force(AdapterChange(adapter, loads=True))
            elif (known.file, known.weights_digest) != (adapter.file, adapter.weights_digest):
                raise AdapterNameTaken(adapter.name, known.file)
            # Between the order and here nothing else can have unloaded it: it has one writer.
            return self._adapters.get(adapter.name) or adapter

    async def unload_adapter(self, name: str) -> None:
        """Remove an adapter from all ranks, once no generation runs.

        Raises:
            UnknownAdapter: none is loaded under this name.
            NotServing: before the first SERVING and while draining.
        """
        async with self._writing:
            self._check_accepting()
            known = self._adapters.get(name)
            if known is None:
                raise UnknownAdapter(name)
            await self._put_into_force(AdapterChange(known, loads=False))

    async def _put_into_force(self, change: Pending) -> None:
        self._dispatcher.change = change
        self._ledger.work.set()
        await change.wait()

    def _commit(self, wanted: Configuration) -> None:
        revision = self.configuration.revision + 1
        log.info("configured", revision=revision)
        self._configurations.append(dataclasses.replace(wanted, revision=revision))
        del self._configurations[:-_KEPT_CONFIGURATIONS]

    def _check_accepting(self) -> None:
        if self.phase not in {Phase.SERVING, Phase.RESTARTING}:
            raise self._not_serving()

    def _not_serving(self) -> NotServing:
        return NotServing(self.phase.name, self._dispatcher.start_estimate, self._stage)

    @property
    def queue_depth(self) -> int:
        """Generations that wait."""
        return len(self._ledger)

    def submit(self, submission: Submission) -> Generation:
        """Accept a generation, or give the one that its id stands for already.

        Raises:
            RequestIdReused: the id stands for other content.
            NotServing: before the first SERVING and while draining.
            QueueFull: nothing more may wait.
        """
        known = self.same(submission.request_id, submission.identity, submission.digest)
        if known is not None:
            return known
        self._check_accepting()
        return self._ledger.admit(submission)

    def same(self, request_id: str, identity: str, digest: bytes) -> Generation | None:
        """Give the generation that a caller's id stands for already, if any.

        Raises:
            RequestIdReused: it stands for other content.
        """
        return self._ledger.same(request_id, identity, digest)

    def summaries(self, identity: str | None = "") -> list[Summary]:
        """List a caller's generations, the newest first."""
        return self._ledger.summaries(identity)

    def find(self, request_id: str, identity: str = "") -> Generation:
        """Give a caller's generation; UnknownGeneration if there is none of this id of theirs."""
        return self._ledger.find(request_id, identity)

    def cancel(self, request_id: str, identity: str = "") -> State:
        """Cancel a generation, and answer the state it met; UnknownGeneration if there is none."""
        generation = self._ledger.find(request_id, identity)
        met = generation.state
        self._ledger.cancel(generation)
        return met

    async def _supervise(self) -> None:
        try:
            await self._dispatcher.run()
        except (ConfigError, RanksLost) as why:
            self._close(why)
        except Exception as error:  # the outermost frame: a bug must not leave callers waiting
            log.exception("the engine failed")
            self._close(error)

    def _close(self, why: Exception | None) -> None:
        """End everything for good and say why: to `start` if it still waits, else by `closed`."""
        stopped = NotServing("STOPPED", self._dispatcher.start_estimate)
        self._ledger.end_all(stopped)
        self._dispatcher.refuse_change(stopped)
        self._pool.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._set_phase(Phase.STOPPED)
        if not self._serving.done():
            self._serving.set_exception(why or stopped)
            why = None
        if self.closed.done():
            return
        if why is None:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(why)

    def _make_group(self, epoch: int, configuration: Configuration) -> Group:
        self._starts.load(time.monotonic())
        return Group(
            self._config,
            configuration,
            epoch,
            self._folder,
            json_logs=self._json_logs,
            log_level=self._log_level,
            on_progress=self._goes_on,
            on_lost=self._ledger.work.set,
        )

    def _receipt(
        self, generation: Generation, sigmas: tuple[float, ...], outputs: tuple[OutputDigest, ...]
    ) -> Receipt:
        used = generation.configuration or self.configuration
        parameters = generation.parameters
        return make_receipt(self._config, self.facts, used, parameters, sigmas, outputs)

    def _leave(self, generation: Generation) -> None:
        self._dispatcher.leave(generation)

    def _restarts(self) -> None:
        self._starts.load(time.monotonic())
        self._set_phase(Phase.RESTARTING)

    def _goes_on(self, report: Loading | WarmingUp) -> None:
        if isinstance(report, Loading):
            # The others do the same a little later, and wait for it before that.
            if report.rank == 0:
                self._stage = stage_text(report.stage, report.bytes_done, report.bytes_total)
            for listener in self._loading_listeners:
                listener(report)
            return
        self._starts.warm_up(time.monotonic())
        if self.phase is Phase.LOADING:
            self._set_phase(Phase.WARMING_UP)

    def _serves(self, facts: Facts) -> None:
        self._starts.serve(time.monotonic())
        self._stage = ""
        self._facts = facts
        self._set_phase(Phase.SERVING)
        if not self._serving.done():
            self._initial = dataclasses.replace(self.configuration, defaults=facts.defaults)
            self._configurations = [self._initial]
            self._serving.set_result(None)

    def _set_phase(self, phase: Phase) -> None:
        # There is no way back: a group that restarts while draining only finishes the queue.
        if self.phase is Phase.STOPPED or (
            self.phase is Phase.DRAINING and phase is not Phase.STOPPED
        ):
            return
        self.phase = phase
        for listener in self._listeners:
            listener(phase)
