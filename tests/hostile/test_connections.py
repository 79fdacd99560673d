"""Whatever comes in on the port, the server answers others meanwhile and afterwards."""

from __future__ import annotations

import asyncio
import time

import grpc
import psutil
import pytest
from tests.campaigns.hostile import connections
from tests.campaigns.hostile.connections import Address
from tests.campaigns.hostile.targets import STARTER, still_serves
from tests.distributed.servers import Server

SETTLE_SECONDS = 60.0
SHORT = {"half-open connections": 100, "idle streams": 200, "slow readers": 10}
LONG = {"half-open connections": 1000, "idle streams": 1000, "slow readers": 100}


def serves(server: Server) -> None:
    """Hold the server to making a picture, on the ranks that it had."""
    asyncio.run(still_serves(server, STARTER))


def descriptors(server: Server) -> int:
    """Count what the service process has open."""
    return int(psutil.Process(server.process.pid).num_fds())


def settles(server: Server, before: int) -> None:
    """Wait until nothing of an attack is left open, a few pooled connections apart."""
    limit = time.monotonic() + SETTLE_SECONDS
    while (left := descriptors(server)) > before + 5 and time.monotonic() < limit:
        time.sleep(0.1)
    assert left <= before + 5


def attack(server: Server, address: Address, scale: int) -> None:
    """Send garbage and resets."""
    serves(server)
    before = descriptors(server)
    connections.garbage(address, 20 * scale, seed=1)
    connections.resets(address, 50 * scale)
    for _ in range(scale):
        connections.rapid_resets(address, 500)
    serves(server)
    settles(server, before)


def hold(server: Server, address: Address, counts: dict[str, int], kind: str) -> None:
    """Hold many connections, be served beside them, and let go."""
    serves(server)
    before = descriptors(server)
    with connections.HELD[kind](address, counts[kind]):
        serves(server)
    serves(server)
    settles(server, before)


def test_garbage_and_resets_leave_nothing_behind(victim: Server, address: Address) -> None:
    """Other protocols, noise, connections and streams that are reset: all of it ends by itself."""
    attack(victim, address, 1)


@pytest.mark.soak
def test_storms_of_garbage_and_resets_leave_nothing_behind(
    victim: Server, address: Address
) -> None:
    """The same, fifty times as much: 25,000 streams that are reset as soon as they are there."""
    attack(victim, address, 50)


@pytest.mark.parametrize("kind", SHORT)
def test_others_are_served_beside_connections_that_do_nothing(
    kind: str, victim: Server, address: Address
) -> None:
    """Who holds connections or streams holds up nobody else."""
    hold(victim, address, SHORT, kind)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", LONG)
def test_others_are_served_beside_a_thousand_of_them(
    kind: str, victim: Server, address: Address
) -> None:
    """The same with 1,000 idle streams, and as many connections."""
    hold(victim, address, LONG, kind)


def test_what_is_too_large_is_refused_by_its_size(victim: Server, address: Address) -> None:
    """Metadata and messages over their limits cost one call each, and nothing else."""
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert connections.oversized(address, 100_000, 33 * 2**20) == [exhausted] * 2
    serves(victim)
