"""Each host reads the model from its own disk, and it has to be the same one."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest
from tests.runtime.test_placement import launch_with

from ditcast_runtime import start
from ditcast_runtime.broadcast import Ballot, ControlGroup
from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.launches import TorchrunStore
from ditcast_runtime.settings import LoadingSettings
from ditcast_runtime.source import Source, fetch, locate

USUAL = launch_with(LoadingSettings())


class RankZero:
    """The control group as a rank of another host has it, with a rank 0 that has some weights."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def vote(self, ballot: Ballot) -> Ballot:
        """Agree."""
        return ballot

    def share(self, data: bytearray | None, size: int) -> bytearray:
        """Give what rank 0 says."""
        assert data is None
        assert size == len(self._digest)
        return bytearray(self._digest, "ascii")


def remote(digest: str, local_rank: int) -> Source:
    """Find the model as rank 3, on another host than rank 0's."""
    launch = msgspec.structs.replace(
        USUAL, rank=3, local_rank=local_rank, store=TorchrunStore(prefix="x")
    )
    control = cast("ControlGroup", RankZero(digest))
    return start._source(launch, control, lambda *_: None)


def test_a_host_with_other_weights_is_refused() -> None:
    """Half of one model and half of another would make pictures, of nothing."""
    with pytest.raises(ConfigError, match="are not rank 0's"):
        remote("0" * 64, local_rank=0)


def test_the_first_rank_of_a_host_reads_for_the_others() -> None:
    """Those find what it has read, and read nothing themselves."""
    read = fetch(USUAL, lambda *_: None)
    assert remote(read.digest, local_rank=0) == read
    found = remote("0" * 64, local_rank=1)
    assert found == locate(USUAL)
    assert read.folder == STARTER_MODEL
