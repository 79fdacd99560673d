"""`ditcast health`, the probe of containers: exit codes tell what to do."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ditcast_client import cli, exits

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Serve health as a server does that still loads: alive, and not ready."""
    servicer = health.HealthServicer()
    servicer.set("", NOT_SERVING)
    servicer.set("liveness", SERVING)
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"unix:{tmp_path}/socket"
    server.add_insecure_port(address)
    server.start()
    yield address
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--service", "liveness"], exits.DONE, "SERVING"),
        ([], exits.UNAVAILABLE, "NOT_SERVING"),
        (["--service", "livelyness"], exits.REFUSED, "NO ANSWER: NOT_FOUND"),
    ],
)
def test_exit_code_tells_the_status(
    address: str,
    arguments: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0 for what serves, 3 for what does not, 2 for a name that there is not."""
    assert cli.main(["health", *arguments, "--address", address]) == code
    assert capsys.readouterr().out == f"{said}\n"


def test_no_server_is_unavailable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A probe of nobody ends, by its time limit at the latest, with 3."""
    address = f"unix:{tmp_path}/nobody"
    assert cli.main(["health", "--timeout", "1", "--address", address]) == exits.UNAVAILABLE
    assert capsys.readouterr().out.startswith("NO ANSWER: ")
