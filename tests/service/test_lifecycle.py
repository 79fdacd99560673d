"""The life of a real server with a real rank: loading, serving, draining, being forced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub

Call = aio.UnaryStreamCall[Any, Any]


@contextmanager
def serving(tmp_path: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `ditcast serve` on a socket of its own; whatever happens, nothing of it is left."""
    address = f"unix:{tmp_path}/socket"
    command = [sys.executable, "-m", "ditcast_service.serve", "--listen", address, *flags]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DITCAST")}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        try:
            yield process, address
        finally:
            process.kill()


def wait_until_serving(process: subprocess.Popen[str]) -> None:
    """Wait for the one line that scripts wait for."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ditcast is serving ditcast/qwen-image-starter on unix:")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[tuple[subprocess.Popen[str], aio.Channel]]:
    """Serve the embedded model on one rank."""
    with serving(tmp_path) as (process, address):
        wait_until_serving(process)
        async with aio.insecure_channel(address) as channel:
            yield process, channel


async def begun(channel: aio.Channel, steps: int) -> Call:
    """Start a generation and read until its first step."""
    request = pb.GenerateRequest(prompt="a red circle", num_inference_steps=steps)
    call: Call = DiffusionServiceStub(channel).Generate(request)
    while True:
        response: Any = await call.read()
        if response.event.HasField("step_completed"):
            return call


async def test_sigterm_refuses_new_work_and_finishes_what_runs_and_waits(
    running: tuple[subprocess.Popen[str], aio.Channel],
) -> None:
    """What was taken completes, a new request gets DRAINING, and the exit code is 0."""
    process, channel = running
    stub = DiffusionServiceStub(channel)
    first = await begun(channel, 60)
    second: Call = stub.Generate(pb.GenerateRequest(prompt="a blue square", num_inference_steps=4))
    await second.read()
    process.send_signal(signal.SIGTERM)
    # The running one's next events come after the signal was handled.
    for _ in range(5):
        await first.read()
    with pytest.raises(aio.AioRpcError) as refused:
        await stub.Generate(pb.GenerateRequest(prompt="too late")).read()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "draining" in str(refused.value.details())
    for call in (first, second):
        responses: list[Any] = []
        while (response := await call.read()) is not aio.EOF:
            responses.append(response)
        assert responses[-1].event.HasField("completed")
    assert process.wait(20) == 0


async def test_a_second_signal_forces(
    running: tuple[subprocess.Popen[str], aio.Channel],
) -> None:
    """Who asks twice does not want to wait; the exit code says that work was lost."""
    process, channel = running
    call = await begun(channel, 1000)
    process.send_signal(signal.SIGTERM)
    await call.read()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 1


async def test_while_loading_it_lives_and_refuses_and_can_be_stopped(tmp_path: Path) -> None:
    """The server listens at once: liveness SERVING, readiness not, Generate UNAVAILABLE."""
    with serving(tmp_path) as (process, address):
        async with aio.insecure_channel(address) as channel:
            stub = DiffusionServiceStub(channel)
            health: Any = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(aio.AioRpcError) as refused:
                await stub.Generate(pb.GenerateRequest(prompt="a"), wait_for_ready=True).read()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            answers = [
                (await health.Check(health_pb2.HealthCheckRequest(service=name))).status
                for name in ("", "liveness")
            ]
            assert answers == [
                health_pb2.HealthCheckResponse.NOT_SERVING,
                health_pb2.HealthCheckResponse.SERVING,
            ]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_demo_makes_a_picture_and_stops_everything(tmp_path: Path) -> None:
    """`make demo`: exit code 0, the picture where it says, computed and cached steps shown."""
    ended = subprocess.run(
        [sys.executable, "-m", "ditcast_service.demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "cached" in ended.stdout
    assert str(tmp_path / "out" / "demo.png") in ended.stdout
