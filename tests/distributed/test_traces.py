"""Spans of a live server, as a collector gets them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.distributed.collector import Collector, Sent
from tests.distributed.generations import FOR_EVER, fields, small, watch_until
from tests.distributed.servers import Server, serve

ERROR = 2
"""Of a status, by OpenTelemetry's numbers."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Listen for spans."""
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def server(collector: Collector, folder: Path) -> Iterator[Server]:
    """Serve on two ranks, traced because the standard variable says where to."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        patched.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        server = serve(folder, "--world-size", "2")
    yield server
    server.stop()


def _generation(request_id: str, sent: Sent) -> bool:
    return sent.name == "generation" and sent.attributes["ditcast.request_id"] == request_id


async def test_a_trace_goes_from_the_client_through_the_service_to_the_ranks(
    server: Server, collector: Collector
) -> None:
    """Program, call, RPC, generation, stages: each the parent of the next, over two processes."""
    script = Path(__file__).with_name("traced_client.py")
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), server.address, "traced"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stderr
    program = await collector.wait(lambda sent: sent.name == "my program")
    [call] = await collector.children(program, "ditcast.v1.DiffusionService/Generate")
    [rpc] = await collector.children(call, "ditcast.v1.DiffusionService/Generate")
    assert (call.service, rpc.service) == ("unknown_service:python", "ditcast")
    assert rpc.attributes["rpc.grpc.status_code"] == call.attributes["rpc.grpc.status_code"] == 0
    [generation] = await collector.children(rpc, "generation")
    stages = await collector.children(generation, "queued", "prepare", "decode", "encode")
    names = [stage.name for stage in stages]
    assert sorted(names) == sorted(
        ["queued", "prepare", "denoise", "denoise", "decode", "decode", "encode"]
    )
    assert names[:2] == ["queued", "prepare"]
    denoised = [stage for stage in stages if stage.name == "denoise"]
    assert {stage.attributes["ditcast.rank"] for stage in denoised} == {0, 1}
    assert {stage.attributes["ditcast.computed_steps"] for stage in denoised} == {2}
    [encoded] = [stage for stage in stages if stage.name == "encode"]
    assert encoded.span.end_time_unix_nano <= generation.span.end_time_unix_nano
    assert all(0 < stage.seconds < generation.seconds for stage in denoised)


async def test_a_cancelled_generation_says_so(server: Server, collector: Collector) -> None:
    """In its own status and in that of its RPC, which by itself would have none."""
    async with server.client() as client:
        running = client.generate(**fields(request_id="cancelled", num_inference_steps=FOR_EVER))
        events = aiter(running)
        await watch_until(events, "step_completed", 2)
        await running.cancel()
    generation = await collector.wait(lambda sent: _generation("cancelled", sent))
    assert (generation.span.status.code, generation.span.status.message) == (ERROR, "CANCELLED")
    rpc = await collector.wait(lambda sent: sent.span.span_id == generation.span.parent_span_id)
    assert (rpc.span.status.code, rpc.span.status.message) == (ERROR, "CANCELLED")
    assert rpc.attributes["rpc.grpc.status_code"] == 1
    [*_, denoised, _] = await collector.children(generation, "denoise")
    assert denoised.attributes["ditcast.outcome"] == "cancelled"


async def test_lost_ranks_stand_in_the_trace(server: Server, collector: Collector) -> None:
    """An event, what the lost ranks had done, and then the run that came to a result."""
    async with server.client() as client:
        running = client.generate(**fields(request_id="lost", num_inference_steps=60))
        events = aiter(running)
        await watch_until(events, "step_completed", 2)
        server.ranks()[1].kill()
        await watch_until(events, "completed")
    generation = await collector.wait(lambda sent: _generation("lost", sent))
    assert [event.name for event in generation.span.events] == ["restarted"]
    stages = await collector.children(generation, "encode")
    outcomes = [stage.attributes.get("ditcast.outcome") for stage in stages]
    assert [outcome for outcome in outcomes if outcome] == ["lost", *["done"] * 4]
    assert [stage.name for stage in stages].count("queued") == 2
    assert generation.span.status.code != ERROR


async def test_a_refusal_is_an_rpc_without_a_generation(
    server: Server, collector: Collector
) -> None:
    """Nothing was accepted; the status is the caller's."""
    async with server.client() as client:
        with pytest.raises(Exception, match="width"):
            await client.generate(**small(width=17, request_id="refused")).result()
    rpc = await collector.wait(lambda sent: sent.attributes.get("ditcast.request_id") == "refused")
    assert (rpc.span.status.code, rpc.span.status.message) == (ERROR, "INVALID_ARGUMENT")
    assert rpc.name.endswith("/Generate")
