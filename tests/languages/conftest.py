"""One server for the clients of all languages, alone and behind Envoy; each client, built once."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.distributed.adapter_files import write_adapter
from tests.distributed.servers import START_SECONDS, Server, serve
from tests.languages import builds
from tests.languages.builds import Example, Go
from tests.mesh.proxies import envoy
from tests.page.site import port_of

from ditcast_client import BlockingClient, TransportBroken, Unavailable


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the log of the server that a failed test used."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Server):
                report.sections.append(("log of the server", value.tail()))
    return report


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve on one rank, with a short queue and an adapter to load, over TCP as well."""
    folder = tmp_path_factory.mktemp("languages")
    styles = folder / "styles"
    styles.mkdir()
    write_adapter(styles / "style.safetensors", "attn.to_q", seed=1)
    short = ("--queue-capacity", "4", "--adapter-folder", str(styles))
    server = serve(folder, "--listen", "127.0.0.1:0", *short)
    yield server
    server.stop()


@pytest.fixture(scope="package")
def direct(server: Server) -> str:
    """Give the server's address."""
    [address] = [each for each in server.addresses if not each.startswith("unix:")]
    return address


@pytest.fixture(scope="package")
def through_envoy(direct: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of an Envoy before it that has found the server healthy."""
    proxy = envoy(tmp_path_factory.mktemp("envoy"), [port_of(direct)])
    try:
        wait_until_served(proxy.address)
        yield proxy.address
    finally:
        proxy.stop()


def wait_until_served(address: str) -> None:
    """Wait until Envoy has found the server healthy."""
    limit = time.monotonic() + START_SECONDS
    with BlockingClient(address) as client:
        while True:
            try:
                client.capabilities()
            except (TransportBroken, Unavailable):
                assert time.monotonic() < limit
                time.sleep(0.1)
            else:
                return


@pytest.fixture(scope="package", params=["direct", "through_envoy"])
def address(request: pytest.FixtureRequest) -> str:
    """Give where to connect to: the server, then Envoy."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture(scope="package")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the copy of the tree that clients are built in."""
    return builds.copied(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="package")
def typescript(clients: Path) -> Path:
    """Give the folder of the TypeScript client, built."""
    return builds.typescript(clients)


@pytest.fixture(scope="package")
def go(clients: Path) -> Go:
    """Give the Go client."""
    return builds.go(clients)


@pytest.fixture(scope="package")
def typescript_example(typescript: Path) -> Example:
    """Give the example of the TypeScript client."""
    return Example(("node", typescript / "dist" / "examples" / "generate.js"), scheme="http://")


@pytest.fixture(scope="package")
def go_example(go: Go) -> Example:
    """Give the example of the Go client."""
    go.run("build", "-o", "generate", "./example")
    return Example((go.folder / "generate",))


@pytest.fixture(scope="package")
def cpp_example(clients: Path) -> Example:
    """Give the example in C++."""
    return Example((builds.cpp(clients),))


@pytest.fixture(scope="package")
def java_example(clients: Path) -> Example:
    """Give the example in Java."""
    return Example(("java", "-jar", builds.java(clients)))


@pytest.fixture(scope="package", params=["typescript", "go", "cpp", "java"])
def example(request: pytest.FixtureRequest) -> Example:
    """Give each of the examples."""
    example: Example = request.getfixturevalue(f"{request.param}_example")
    return example


@pytest.fixture(scope="package", params=["typescript", "go"])
def reattaching(request: pytest.FixtureRequest) -> Example:
    """Give each of the examples whose client watches on after a broken stream."""
    example: Example = request.getfixturevalue(f"{request.param}_example")
    return example
