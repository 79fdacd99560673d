"""Two ranks that torchrun starts on this host: what holds of ranks of the service's own holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.distributed.servers import Server
from tests.hosts import promises
from tests.hosts.launching import Torchrun


@dataclass
class Pair:
    """A server, and the torchrun that starts its ranks."""

    server: Server
    torchrun: Torchrun


@pytest.fixture(scope="module")
def pair(folder: Path, secret: Path) -> Iterator[Pair]:
    """Start both; at the end, a drain lets the ranks leave for good."""
    socket = f"unix:{folder}/ranks"
    server = Server(
        folder,
        *("--world-size", "2", "--device", "cpu"),
        *("--control-listen", socket, "--control-secret", str(secret)),
    )
    torchrun = Torchrun(
        "here",
        folder,
        ("--nproc-per-node", "2", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
        ("--service", socket, "--secret-file", str(secret), "--interface", "lo"),
    )
    try:
        server.wait_serving()
        yield Pair(server, torchrun)
        ranks = torchrun.ranks()
        server.stop()
        assert torchrun.wait() == 0, torchrun.tail()
        torchrun.expect_ranks_gone(ranks, 0)
    finally:
        server.clear_away()
        torchrun.clear_away()


async def test_they_keep_the_promises(pair: Pair) -> None:
    """Generate, cancel, and kill -9 of a rank: all of them are started again, the bytes the same.

    The service has started none of them: it only lets go of what is left of a lost group.
    """
    made = await promises.undisturbed(pair.server)
    await promises.cancels(pair.server)
    before = pair.torchrun.ranks()
    assert len(before) == 2
    assert pair.server.descendants() == []
    await promises.survives(pair.server, made, before[1].kill)
    pair.torchrun.expect_ranks_gone(before, 0)
    report = await pair.server.logged(event="the ranks were lost")
    assert report["explanation"].startswith("rank 1 closed its channel")
    assert [rank["process_id"] for rank in report["ranks"]] == [each.pid for each in before]
