"""The loop that every rank runs; `rank_process` and `attach` are the entry points of its process.

Every rank, rank 0 too, runs a generation from the broadcast copy of its command. A generation is a
row of boundaries (prepared, each step, the end) at which all ranks vote; the first verdict other
than GO_ON, or the verdict at the end, is the generation's last vote on every rank. A rank that
failed votes FAILED once, wherever the others are, and that is its last vote too, so that all ranks
always make the same number of votes.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Collection
from typing import Any

import structlog

from ditcast_runtime import logs, pictures
from ditcast_runtime.broadcast import Ballot, ControlLost
from ditcast_runtime.channel import ChannelClosed, RankChannel
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.execution import (
    Execution,
    Left,
    failure_kind,
    rank_memory,
    refused_field,
)
from ditcast_runtime.generation import SeparateCfg
from ditcast_runtime.launches import Launch
from ditcast_runtime.messages import (
    Alive,
    Broadcast,
    Cancel,
    CannotServe,
    Configure,
    Ended,
    Failed,
    FailureKind,
    LoadAdapter,
    Outcome,
    Ready,
    Run,
    Shutdown,
    UnloadAdapter,
)
from ditcast_runtime.start import Started, start

log = structlog.get_logger()

_ALIVE_SECONDS = 1.0
_LAUNCH_SECONDS = 60.0


class Inbox:
    """The rank's receiver thread: the only reader of the channel, and the sign of life.

    It ends the process when the service is gone, and otherwise only fills a queue or sets a flag.
    """

    def __init__(self, channel: RankChannel, launch: Launch) -> None:
        self._channel = channel
        self._launch = launch
        self._commands: queue.SimpleQueue[tuple[Broadcast, int | None]] = queue.SimpleQueue()
        self._cancelled: dict[int, frozenset[int]] = {}
        self._leaving = False
        threading.Thread(target=self._receive, name="inbox", daemon=True).start()

    def next(self) -> tuple[Broadcast, int | None]:
        """Wait for the next command that all ranks have to hear of; with its descriptor, if any."""
        return self._commands.get()

    def next_at_once(self) -> tuple[Broadcast, int | None] | None:
        """Give the next command if it is here already."""
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def cancelled(self, number: int) -> Collection[int]:
        """Say which of the batch of this number are to be left."""
        return self._cancelled.get(number, frozenset())

    def leave(self) -> None:
        """End the process no more: it leaves by itself, with a code of its own."""
        self._leaving = True

    def _receive(self) -> None:
        alive = Alive(epoch=self._launch.epoch, rank=self._launch.rank)
        while True:
            try:
                received = self._channel.receive(_ALIVE_SECONDS)
                if received is None:
                    self._channel.send(alive)
                    continue
            except (ChannelClosed, OSError):
                if self._leaving:
                    return
                # Nobody is left to report to; a normal exit could wait for a stuck collective.
                os._exit(5)
            match received.command:
                case Cancel() as command:
                    known = self.cancelled(command.number)
                    marked = {
                        **self._cancelled,
                        command.number: frozenset({*known, command.index}),
                    }
                    # Two: of what runs, and of what was sent ahead. Replaced as a whole, as the
                    # thread that runs the pipeline reads it meanwhile.
                    self._cancelled = dict(list(marked.items())[-2:])
                case (
                    Run() | Configure() | LoadAdapter() | UnloadAdapter() | Shutdown()
                ) as command:
                    self._commands.put((command, received.descriptor))
                case Launch():
                    pass


class Rank:
    """One rank of the group: runs what is broadcast until it is told to leave."""

    def __init__(
        self,
        launch: Launch,
        channel: RankChannel,
        inbox: Inbox,
        started: Started,
    ) -> None:
        self.launch = launch
        self.channel = channel
        self.inbox = inbox
        self.control = started.control
        self.pipeline = started.pipeline
        self.previewer = started.previewer
        self.separate_cfg = started.facts.separate_cfg
        self._descriptor: int | None = None
        """What came with the command that is being broadcast."""

    def loop(self) -> None:
        """Receive, run, report; returns on Shutdown."""
        while True:
            if not self.control.begun:
                self._begin_next(self.inbox.next() if self.launch.rank == 0 else None)
            command, descriptor = self.control.finish(), self._descriptor
            match command:
                case Run():
                    with structlog.contextvars.bound_contextvars(request_id=command.request_id):
                        self._run(command, descriptor)
                case Configure():
                    self._configure(command)
                case LoadAdapter():
                    self._load_adapter(command)
                case UnloadAdapter():
                    self._unload_adapter(command)
                case Shutdown():
                    return

    def _begin_next(self, sent: tuple[Broadcast, int | None] | None) -> None:
        """Begin to give all ranks the next command; those that only receive it have None."""
        command, self._descriptor = sent or (None, None)
        self.control.begin(command)

    def _begin_next_early(self) -> None:
        """Begin to receive the next command, if rank 0 has it, while this rank has more to do."""
        sent = self.inbox.next_at_once() if self.launch.rank == 0 else None
        if sent is not None or self.launch.rank > 0:
            self._begin_next(sent)

    def _configure(self, command: Configure) -> None:
        """Prepare, then vote: all ranks hold the new settings, or each the old ones."""
        accelerator = self.pipeline.accelerator
        held = accelerator.held
        two = self.separate_cfg is not SeparateCfg.NEVER
        try:
            accelerator.switch(command.cache, command.num_inference_steps, two_passes=two)
            ballot = Ballot.GO_ON
        except Exception as error:  # noqa: BLE001 - whatever a switch raises becomes a vote
            self._report(command.number, error, field="cache")
            ballot = Ballot.FAILED
        refused = self.control.vote(ballot) is Ballot.FAILED
        if refused and held is not None:
            # If this raises, the rank is of no use: it leaves, and the group is replaced.
            accelerator.switch(*held, two_passes=two)
        self._carried_out(command.number, refused=refused)

    def _load_adapter(self, command: LoadAdapter) -> None:
        """Load, then vote: all ranks hold the adapter, or none."""
        adapters = self.pipeline.adapters
        components: tuple[str, ...] = ()
        try:
            components = adapters.load(command.name, command.path, command.weights_digest)
            ballot = Ballot.GO_ON
        except Exception as error:  # noqa: BLE001 - whatever a load raises becomes a vote
            self._report(command.number, error, field="file")
            ballot = Ballot.FAILED
        refused = self.control.vote(ballot) is Ballot.FAILED
        if refused:
            # If this raises, the rank is of no use: it leaves, and the group is replaced.
            adapters.unload(command.name)
        self._carried_out(command.number, refused=refused, components=components)

    def _unload_adapter(self, command: UnloadAdapter) -> None:
        """Remove an adapter; the vote keeps the ranks together."""
        self.pipeline.adapters.unload(command.name)
        self.control.vote(Ballot.GO_ON)
        self._carried_out(command.number, refused=False)

    def _carried_out(self, number: int, *, refused: bool, components: tuple[str, ...] = ()) -> None:
        """Report that an order was carried out, or that all ranks are as they were."""
        self.channel.send(
            Ended(
                epoch=self.launch.epoch,
                number=number,
                rank=self.launch.rank,
                outcome=Outcome.VETOED if refused else Outcome.DONE,
                steps=0,
                memory=rank_memory(self.launch.rank, self.pipeline.device),
                denoise_seconds=0.0,
                decode_seconds=0.0,
                components=() if refused else components,
            )
        )

    def _run(self, command: Run, descriptor: int | None) -> None:
        if command.companions:
            ids = [each.request_id for each in command.batch]
            log.info("a batch begins", request_ids=ids)
        # What this raises ends the process: the other ranks wait in it, and in no vote.
        inputs = self._pictures(command, descriptor)
        execution = Execution(
            command,
            self.pipeline,
            self.separate_cfg,
            self.control,
            self.channel if self.launch.rank == 0 else None,
            self.inbox.cancelled,
            inputs,
            self.previewer,
        )
        failure: Exception | None = None
        try:
            execution.run()
            outcome = Outcome.DONE
        except Left as left:
            outcome = execution.outcome(left.verdict)
        except Exception as error:  # noqa: BLE001 - the one place: whatever leaves the pipeline becomes a vote
            failure = error
            self._report_run(execution, error)
            outcome = execution.outcome(self.control.vote(Ballot.FAILED))
        if outcome is Outcome.FAILED:
            # This rank may have encoded what another had not yet when it failed.
            self.pipeline.prompts.clear()
        # Before all that this rank does for itself: no other has to wait for it then.
        self._begin_next_early()
        self.channel.send(execution.ended(outcome))
        self.pipeline.clean_up(failure)

    def _pictures(self, command: Run, descriptor: int | None) -> dict[str, list[Any]]:
        """Give every rank the input pictures, by the parameter that takes them."""
        if not command.pictures:
            return {}
        size = pictures.size_bytes(command.pictures)
        pixels = None if descriptor is None else pictures.read(descriptor, size)
        return pictures.build(command.pictures, self.control.share(pixels, size))

    def _report_run(self, execution: Execution, error: Exception) -> None:
        field = refused_field(error, execution.command.parameters)
        self._report(
            execution.command.number,
            error,
            field=field,
            step=execution.steps,
            prepared=execution.accepted,
            doubtful=execution.doubtful,
        )

    def _report(
        self,
        number: int,
        error: Exception,
        *,
        field: str,
        step: int = 0,
        prepared: bool = False,
        doubtful: bool = False,
    ) -> None:
        kind = failure_kind(error, prepared=prepared, doubtful=doubtful)
        if doubtful and kind is FailureKind.REFUSED:
            # Told to the caller alone, a fault of the pipeline's own could not be told from it.
            log.warning("refused", field=field, exc_info=error)
        if kind in {FailureKind.FAILED, FailureKind.SETTINGS_DIFFER}:
            log.error("failed", step=step, exc_info=error)
        self.channel.send(
            Failed(
                epoch=self.launch.epoch,
                number=number,
                rank=self.launch.rank,
                step=step,
                kind=kind,
                error_type=type(error).__name__,
                message=str(error)[:2000],
                field=field if kind is FailureKind.REFUSED else "",
            )
        )


def _open_stacks(path: str) -> None:
    """Let faulthandler write to a file: at a fault by itself, and whenever the service asks."""
    if not path:
        faulthandler.enable()
        return
    # Never closed: faulthandler holds its descriptor for as long as the process lives.
    file = open(path, "w")  # noqa: SIM115, PTH123
    faulthandler.enable(file)
    faulthandler.register(signal.SIGUSR1, file)


def live(channel: RankChannel, launch: Launch) -> int:
    """Load, serve and leave as told; give the exit code."""
    _open_stacks(launch.stacks)
    bound = {"rank": launch.rank, "epoch": launch.epoch}
    if launch.group is not None:
        bound["group"] = launch.group
    logs.configure(json_logs=launch.json_logs, level=launch.log_level, **bound)
    logging.captureWarnings(capture=True)
    inbox = Inbox(channel, launch)
    code = _serve(launch, channel, inbox)
    inbox.leave()
    return code


def _serve(launch: Launch, channel: RankChannel, inbox: Inbox) -> int:
    try:
        started = start(launch, channel)
    except ControlLost:
        return 4  # Rank 0 has said why it cannot serve, or is gone.
    except (ConfigError, ImportError, OSError, ValueError, TypeError, AssertionError) as error:
        # What is wrong with the model or the settings will be wrong again: say so, do not restart.
        log.exception("cannot serve")
        channel.send(
            CannotServe(
                epoch=launch.epoch,
                rank=launch.rank,
                error_type=type(error).__name__,
                reason=str(error)[:2000],
            )
        )
        return 3
    rank = Rank(launch, channel, inbox, started)
    ready = Ready(
        epoch=launch.epoch, rank=launch.rank, facts=started.facts, seconds=started.seconds
    )
    channel.send(ready)
    try:
        rank.loop()
    except ControlLost as lost:
        log.warning("another rank is gone", reason=str(lost)[:200])
        return 4
    return 0


def main() -> int:
    """Run one rank: the channel's descriptor is the only argument, all else comes through it."""
    parser = argparse.ArgumentParser(prog="ditcast_runtime.rank_process")
    parser.add_argument("--channel", type=int, required=True)
    channel = RankChannel(socket.socket(fileno=parser.parse_args().channel))
    first = channel.receive(_LAUNCH_SECONDS)
    if first is None or not isinstance(first.command, Launch):
        return 2
    return live(channel, first.command)
