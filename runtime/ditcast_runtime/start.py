"""What a rank does before its first command: join the others, fetch the model, load, warm up.

Rank 0 fetches and reads the weights while the others wait, so that a slow disk, or the hub, is read
once; then all load at the same time, from the page cache. On other hosts their first ranks do so.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import structlog
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from ditcast_runtime import facts
from ditcast_runtime.broadcast import Ballot, ControlGroup
from ditcast_runtime.channel import RankChannel
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.launches import Launch, SharedFile, TorchrunStore
from ditcast_runtime.loading import resolve_device
from ditcast_runtime.messages import (
    Facts,
    Loading,
    WarmingUp,
)
from ditcast_runtime.pipeline import Pipeline
from ditcast_runtime.previews.lesson import Lesson
from ditcast_runtime.previews.previewer import Previewer
from ditcast_runtime.settings import Problem
from ditcast_runtime.source import Report, Source, fetch, locate
from ditcast_runtime.steps import Stopwatch
from ditcast_runtime.warm_up import warm_up

log = structlog.get_logger()

_DIGEST_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Started:
    """A rank that can take commands."""

    control: ControlGroup
    pipeline: Pipeline
    previewer: Previewer | None
    """None: no previews can be made."""
    facts: Facts
    seconds: float


class Progress:
    """Tells the service of each stage of loading, and the log once of each."""

    def __init__(self, launch: Launch, channel: RankChannel) -> None:
        self._launch = launch
        self._channel = channel
        self._watch = Stopwatch()
        self._stage = ""
        self.seconds = 0.0
        """Since the rank began to load."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Report where loading is; `total` 0: it is not known how many bytes the stage has."""
        self.lap()
        if stage != self._stage:
            self._stage = stage
            sizes = {"bytes_done": done, "bytes_total": total} if total else {}
            log.info("loading", stage=stage, seconds=round(self.seconds, 1), **sizes)
        self._channel.send(
            Loading(
                epoch=self._launch.epoch,
                rank=self._launch.rank,
                stage=stage,
                seconds=self.seconds,
                bytes_done=done,
                bytes_total=total,
            )
        )

    def lap(self) -> None:
        """Count the time up to now."""
        self.seconds += self._watch.lap()


def start(launch: Launch, channel: RankChannel) -> Started:
    """Load and warm up.

    Raises:
        ConfigError: the model cannot be served with these settings.
        OSError, ValueError, TypeError, AssertionError: the libraries refused it.
    """
    report = Progress(launch, channel)
    device = resolve_device(launch.device, launch.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(launch.threads)
    report("joining the group")
    _join(launch, device)
    control = ControlGroup(launch.rank, launch.world_size)
    source = _source(launch, control, report)
    defaults = facts.model_defaults(source.folder)
    pipeline = Pipeline.load(launch, source.folder, device, report)
    found = facts.describe(pipeline, launch, source, defaults)
    channel.send(WarmingUp(epoch=launch.epoch, rank=launch.rank))
    report("warming up")
    lesson = Lesson(pipeline.pipe, device, parallel_vae=_has_parallel_vae(launch))
    with lesson.watching():
        found = warm_up(pipeline, launch, found)
    previewer = lesson.previewer()
    found = msgspec.structs.replace(found, previews=previewer is not None)
    # Only now: what the warm-up measures must be encoded each time.
    pipeline.prompts.keep(launch.prompt_cache_bytes)
    report.lap()
    return Started(control, pipeline, previewer, found, report.seconds)


def _has_parallel_vae(launch: Launch) -> bool:
    parallelism = launch.acceleration.parallelism
    return parallelism is not None and "vae" in parallelism.extra_parallel_modules


def _join(launch: Launch, device: torch.device) -> None:
    """Join the data group."""
    if launch.world_size == 1:
        return
    init_method, store = _rendezvous(launch.store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=init_method,
        store=store,
        rank=launch.rank,
        world_size=launch.world_size,
        # The service's watchdogs are far shorter; this only frees what nobody watches.
        timeout=timedelta(hours=2),
        device_id=device if device.type == "cuda" else None,
    )


def _rendezvous(place: SharedFile | TorchrunStore) -> tuple[str | None, Store | None]:
    """Say where the ranks find each other: by a file, which takes no port, or in a store."""
    if isinstance(place, SharedFile):
        return f"file://{place.path}", None
    store = TCPStore(
        place.address,
        place.port,
        is_master=place.hosts_it,
        wait_for_workers=False,
    )
    return None, PrefixStore(place.prefix, store)


def _source(launch: Launch, control: ControlGroup, report: Report) -> Source:
    """Have rank 0 fetch and read the model, and the others find it where it then is."""
    source = None
    if launch.rank == 0:
        source = fetch(launch, report)
    else:
        report("waiting for rank 0 to read the weights")
    control.vote(Ballot.GO_ON)
    if isinstance(launch.store, TorchrunStore):
        source = _source_of_host(launch, control, report, source)
    return source or locate(launch)


def _source_of_host(
    launch: Launch, control: ControlGroup, report: Report, source: Source | None
) -> Source | None:
    """Have the first rank of each host fetch and read it there; it must be what rank 0 has."""
    told = bytearray(source.digest, "ascii") if source else None
    digest = control.share(told, _DIGEST_CHARACTERS).decode()
    if source is None and launch.local_rank == 0:
        source = fetch(launch, report)
        if source.digest != digest:
            reason = f"the weights in {source.folder} on {socket.gethostname()} are not rank 0's"
            raise ConfigError((Problem("model", reason),))
    control.vote(Ballot.GO_ON)
    return source
