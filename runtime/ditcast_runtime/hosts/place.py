"""Where torchrun, or another launcher, has put this rank; read once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import Problem

_MAX_PORT = 2**16 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One rank among all that were started together."""

    rank: int
    world_size: int
    local_rank: int
    """Among the ranks of its host: its device."""
    local_world_size: int
    master_address: str
    """Where the store is in which the ranks find each other."""
    master_port: int
    hosts_store: bool
    """Whether this rank has to open that store: rank 0, where torchrun has not."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Place:
        """Read torchrun's variables.

        Raises:
            ConfigError: with every variable that is missing or wrong.
        """
        problems: list[Problem] = []
        rank = _number(environment, "RANK", problems)
        world_size = _number(environment, "WORLD_SIZE", problems)
        if not problems and rank >= world_size:
            problems.append(Problem("RANK", f"{rank} is not below WORLD_SIZE, {world_size}"))
        master_port = _number(environment, "MASTER_PORT", problems)
        if master_port > _MAX_PORT:
            problems.append(Problem("MASTER_PORT", f"{master_port} is no port"))
        address = environment.get("MASTER_ADDR", "")
        if not address:
            problems.append(Problem("MASTER_ADDR", _MISSING))
        place = cls(
            rank=rank,
            world_size=world_size,
            local_rank=_number(environment, "LOCAL_RANK", problems),
            local_world_size=_number(environment, "LOCAL_WORLD_SIZE", problems),
            master_address=address,
            master_port=master_port,
            hosts_store=rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        )
        if problems:
            raise ConfigError(tuple(problems))
        return place


_MISSING = "it is missing: torchrun sets it, and with another launcher it has to be set"


def _number(environment: Mapping[str, str], name: str, problems: list[Problem]) -> int:
    value = environment.get(name, "")
    if value.isdecimal():
        return int(value)
    problems.append(Problem(name, f"{value!r:.40} is no whole number" if value else _MISSING))
    return 0
