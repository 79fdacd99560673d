"""Two servers for all tests here, and a proxy of each kind before them.

Tests may end a server: who comes next gets both again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator

import pytest
from tests.mesh import proxies
from tests.mesh.pair import Pair
from tests.mesh.proxies import Envoy, Proxy

from ditcast_client import Client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the servers and the proxy that a failed test used."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Pair):
                report.sections += [(f"log of {each.folder}", each.tail()) for each in value]
            if isinstance(value, Proxy):
                report.sections.append((f"log of {name}", value.tail()))
    return report


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Start two servers."""
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.clear_away()


@pytest.fixture(scope="session")
def envoy_before(started: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    """Run Envoy before them."""
    proxy = proxies.envoy(tmp_path_factory.mktemp("envoy"), started.ports)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def nginx_before(started: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Run nginx before them."""
    proxy = proxies.nginx(tmp_path_factory.mktemp("nginx"), started.ports)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def haproxy_before(started: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Run HAProxy before them."""
    proxy = proxies.haproxy(tmp_path_factory.mktemp("haproxy"), started.ports)
    yield proxy
    proxy.stop()


@pytest.fixture
def pair(started: Pair) -> Pair:
    """Give the two servers, which both serve."""
    started.revive()
    return started


@pytest.fixture
async def envoy(envoy_before: Envoy, pair: Pair) -> Envoy:
    """Give Envoy, which sends to both of them."""
    await envoy_before.until_healthy(pair.ports)
    return envoy_before


@pytest.fixture
async def client(envoy: Envoy) -> AsyncIterator[Client]:
    """Connect to Envoy."""
    async with Client(envoy.address) as client:
        yield client
