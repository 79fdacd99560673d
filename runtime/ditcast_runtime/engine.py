"""The only door for the service: submit a generation, follow its events, cancel it.

Everything that must survive a crash of the ranks is behind it in this process: the `ledger` of
accepted generations, and the `groups` of ranks that it keeps serving.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

import structlog

from ditcast_runtime.accepted import Generation, Submission
from ditcast_runtime.causes import RestartCause
from ditcast_runtime.change import Change, Pending
from ditcast_runtime.config import (
    Adapter,
    Configuration,
    EngineConfig,
    first_configuration,
    needs_reload,
)
from ditcast_runtime.delivery import Delivery, Encode
from ditcast_runtime.errors import (
    AdapterNameTaken,
    AdapterRefused,
    ConfigError,
    NotServing,
    RanksLost,
    UnknownAdapter,
    UnknownRevision,
)
from ditcast_runtime.fleet import Fleet
from ditcast_runtime.generation import State
from ditcast_runtime.groups import Groups, Listeners, RankSettings
from ditcast_runtime.hosts.attachments import Attachments
from ditcast_runtime.ledger import Ledger, Vitals
from ditcast_runtime.loaded_adapters import AdapterChange, LoadedAdapters
from ditcast_runtime.messages import Facts, Loading, WarmingUp
from ditcast_runtime.observer import UNOBSERVED, Observer
from ditcast_runtime.preview_delivery import EncodePreview, PreviewDelivery
from ditcast_runtime.private_folder import PrivateFolder
from ditcast_runtime.shadow import Shadows
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
        observer: Observer = UNOBSERVED,
        attachments: Attachments | None = None,
    ) -> None:
        """Make it; with `attachments`, ranks are taken from there in place of starting them."""
        self._config = config
        self._observer = observer
        self._configurations = [first_configuration(config)]
        self._writing = asyncio.Lock()
        self._initial = self._configurations[0]
        self._facts: Facts | None = None
        self._listeners: list[Callable[[Phase], None]] = []
        self._loading_listeners: list[Callable[[Loading], None]] = []
        self._starts = Starts()
        self._stage = ""
        self._pool = ThreadPoolExecutor(config.encoder_threads, thread_name_prefix="encode")
        self._folder = PrivateFolder()
        self._ledger = Ledger(config, self._folder.path, self._leave, observer)
        self._shadows = Shadows(self._ledger, self._pool, self._check_accepting)
        # One being made by each group and one being encoded: none holds another up.
        places = config.groups + 1
        self._delivery = Delivery(encode, self._pool, config.chunk_bytes, self._starts, places)
        self._adapters = LoadedAdapters(config.adapters)
        self._groups = Groups(
            config,
            Fleet(config, self._ledger, self._adapters),
            self._delivery,
            lambda: PreviewDelivery(encode_preview, self._pool),
            self._starts,
            RankSettings(
                folder=self._folder.path,
                json_logs=json_logs,
                log_level=log_level,
                attachments=attachments,
            ),
            lambda: self.configuration,
            Listeners(
                serving=self._serves,
                restarting=self._restarts,
                progress=self._goes_on,
                delivered=self._shadows.succeed,
            ),
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
        self._groups.drain()
        if self._task is not None:
            # It ends by itself once nothing waits and the idle ranks have left.
            await asyncio.wait({self._task}, timeout=self._config.grace if busy else 0.0)
            self._ledger.end_all(NotServing("DRAINING", self._groups.start_estimate))
            self._task.cancel()
            await asyncio.wait({self._task})
        for each in (self._delivery, self._shadows, self._groups):
            await each.idle()
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
                await self._put_into_force(
                    AdapterChange(adapter, loads=True, commit=self._adapters.commit)
                )
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
            await self._put_into_force(
                AdapterChange(known, loads=False, commit=self._adapters.commit)
            )

    async def _put_into_force(self, change: Pending) -> None:
        self._groups.propose(change)
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
        return NotServing(self.phase.name, self._groups.start_estimate, self._stage)

    @property
    def serving_groups(self) -> Collection[int]:
        """The indices of the groups that take generations now."""
        return self._groups.serving

    @property
    def occupancy(self) -> int:
        """How many generations wait or have ranks."""
        return self._ledger.occupancy

    @property
    def vitals(self) -> Vitals:
        """How much there is of everything now."""
        return self._ledger.vitals

    def submit(self, submission: Submission) -> Generation:
        """Accept a generation, or give the one that its id stands for already.

        Raises:
            RequestIdReused, NotServing: as `same` does.
            QueueFull: nothing more may wait.
        """
        known = self.same(submission.request_id, submission.identity, submission.digest)
        return self._ledger.admit(submission) if known is None else known

    def same(self, request_id: str, identity: str, digest: bytes) -> Generation | None:
        """Give the generation that a caller's id stands for already, if any.

        Raises:
            RequestIdReused: it stands for other content.
            NotServing: it stands for nothing yet, and nothing new is taken.
        """
        known = self._ledger.same(request_id, identity, digest)
        if known is None:
            self._check_accepting()
        return known

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
            await self._groups.run()
        except (ConfigError, RanksLost) as why:
            self._close(why)
        except Exception as error:  # the outermost frame: a bug must not leave callers waiting
            log.exception("the engine failed")
            self._close(error)

    def _close(self, why: Exception | None) -> None:
        """End everything for good and say why: to `start` if it still waits, else by `closed`."""
        stopped = NotServing("STOPPED", self._groups.start_estimate)
        self._ledger.end_all(stopped)
        self._groups.refuse_change(stopped)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._folder.remove()
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

    def _leave(self, generation: Generation) -> None:
        self._groups.leave(generation)

    def _restarts(self, index: int, cause: RestartCause) -> None:
        self._observer.ranks_restart(index, cause)
        if not self._groups.serving:
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
