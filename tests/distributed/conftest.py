"""Real servers with real ranks, started once and shared; their logs are shown where a test fails.

`server_one` and `server_two` serve the embedded model on one rank without a cache, and on two with
the reference configuration. A test that may end its server takes one of `mortals`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
from tests.distributed.servers import MortalServers, Server, serve

from ditcast_client import Client

PATIENCE_SECONDS = 1
"""How long `server_other` waits for a reader that takes nothing."""
REFERENCE = Path(__file__).parents[1] / "data" / "reference_cache_dit_config.yaml"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the servers that a failed test used."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Server):
                report.sections.append((f"log of {name}", value.tail()))
            if isinstance(value, MortalServers):
                report.sections += [
                    (f"log of the server of {size} ranks", server.tail())
                    for size, server in value.started.items()
                ]
    return report


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for sockets and logs."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def server_one(folder: Path) -> Iterator[Server]:
    """Serve on one rank, with no cache, in small chunks, over TCP as well, and with figures."""
    anywhere = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    server = serve(folder, *anywhere, "--chunk-bytes", "10000")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def server_two(folder: Path) -> Iterator[Server]:
    """Serve on two ranks with the reference configuration: Ulysses, text encoder, VAE, DBCache."""
    server = serve(folder, "--world-size", "2", "--cache-dit-config", str(REFERENCE))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def server_other(folder: Path) -> Iterator[Server]:
    """Serve another kind of pipeline, with little patience and a short queue."""
    model = folder / "other"
    subprocess.run(
        [sys.executable, Path(__file__).with_name("other_model.py"), model],
        check=True,
        capture_output=True,
    )
    server = serve(
        folder,
        *("--model", str(model)),
        *("--queue-capacity", "2"),
        *("--reader-timeout", str(PATIENCE_SECONDS)),
        *("--heartbeat-interval", "0.2"),
    )
    yield server
    server.stop()


@pytest.fixture(scope="session")
def mortals(folder: Path) -> Iterator[MortalServers]:
    """Give servers that a test may end."""
    mortals = MortalServers(folder)
    yield mortals
    mortals.clear_away()


@pytest.fixture
async def one(server_one: Server) -> AsyncIterator[Client]:
    """Connect to `server_one`."""
    async with server_one.client() as client:
        yield client


@pytest.fixture
async def two(server_two: Server) -> AsyncIterator[Client]:
    """Connect to `server_two`."""
    async with server_two.client() as client:
        yield client
