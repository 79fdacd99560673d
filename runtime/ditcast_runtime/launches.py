"""What each rank of one group is told first: who it is, and what to load."""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec

from ditcast_runtime.config import Configuration, EngineConfig
from ditcast_runtime.settings import Acceleration, LoadingSettings, WarmUp


class SharedFile(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ranks find each other by a file in the service's private folder."""

    path: str


class TorchrunStore(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ranks find each other by the store of whoever started them."""

    prefix: str
    """Of this group's keys: others have used the store before."""
    address: str = ""
    """Host of the store. This and what follows each rank fills in from its environment."""
    port: int = 0
    hosts_it: bool = False
    """Whether this rank has to open it."""


class Launch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First frame to a rank: who it is and what to load."""

    epoch: int
    rank: int
    local_rank: int
    """Among the ranks of its host, of all groups. A rank that attached knows better."""
    group: int | None = None
    """Which group, for its log; None: there is one."""
    world_size: int
    store: SharedFile | TorchrunStore
    stacks: str
    """File for faulthandler's stacks, in the service's private folder. Empty: its own log."""
    model: str
    model_revision: str
    variant: str
    """Of the weight files, such as fp16; empty: none."""
    device: str
    acceleration: Acceleration
    loading: LoadingSettings
    warm_up: tuple[WarmUp, ...]
    """What to run before the first command, besides what every pipeline runs."""
    threads: int
    """Of this rank. A rank that attached counts its own host's cores."""
    prompt_cache_bytes: int
    batches: bool = False
    """Whether several generations may share a call; it is tried out in the warm-up."""
    json_logs: bool
    log_level: str


@dataclass(frozen=True, slots=True)
class Launches:
    """The launches of one group, which differ by the rank alone."""

    config: EngineConfig
    configuration: Configuration
    epoch: int
    group: int
    json_logs: bool
    log_level: str

    @property
    def threads(self) -> int:
        """Threads of each rank: the cores this process may use, shared among all ranks."""
        ranks = self.config.groups * self.config.world_size
        return max(1, len(os.sched_getaffinity(0)) // ranks)

    def of(self, rank: int, store: SharedFile | TorchrunStore, stacks: str) -> Launch:
        """Give one rank's; `stacks` is as in `Launch`."""
        return Launch(
            epoch=self.epoch,
            rank=rank,
            local_rank=self.group * self.config.world_size + rank,
            group=self.group if self.config.groups > 1 else None,
            world_size=self.config.world_size,
            store=store,
            stacks=stacks,
            model=self.config.model_source,
            model_revision=self.config.model_revision,
            variant=self.config.variant,
            device=self.config.device,
            acceleration=self.configuration.acceleration,
            loading=self.configuration.loading,
            warm_up=self.config.warm_up,
            threads=self.threads,
            prompt_cache_bytes=self.config.prompt_cache_bytes,
            batches=self.config.max_batch_size > 1,
            json_logs=self.json_logs,
            log_level=self.log_level,
        )
