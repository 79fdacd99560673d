"""From the start to SIGTERM: refused before, finished after, and nothing stays behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from tests.distributed.generations import Ending, ending, fields, stub_of, watch_until
from tests.distributed.servers import START_SECONDS, Server

from ditcast_client.fields import request_from


async def test_a_server_refuses_while_it_loads_and_finishes_what_it_took(tmp_path: Path) -> None:
    """LOADING, then SIGTERM with one running and three waiting: all four come, nobody else."""
    server = Server(tmp_path)
    try:
        async with asyncio.timeout(START_SECONDS):
            _expect_unavailable(await _refused(server), "LOADING")
        server.wait_serving()
        await _terminate_with_four(server)
        server.stop()
    finally:
        server.clear_away()


async def test_no_process_outlives_a_service_that_is_killed_while_it_loads(tmp_path: Path) -> None:
    """Ranks die with it from their first moment on, also while they only import."""
    server = Server(tmp_path, "--world-size", "2")
    try:
        async with asyncio.timeout(START_SECONDS):
            while len(server.descendants()) < 2:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        server.kill()
        server.expect_no_orphans()
    finally:
        server.clear_away()


async def _terminate_with_four(server: Server) -> None:
    async with server.client() as client:
        running = client.generate(**fields(seed=0, num_inference_steps=60))
        events = aiter(running)
        await watch_until(events, "step_completed")
        waiting = [client.generate(**fields(seed=seed)) for seed in (1, 2, 3)]
        queues = [aiter(generation) for generation in waiting]
        for queue in queues:
            await watch_until(queue, "queued")
        server.terminate()
        # What comes after these was made after the signal.
        await watch_until(events, "step_completed", 10)
        _expect_unavailable(await _refused(server), "DRAINING")
        for stream in (events, *queues):
            await watch_until(stream, "completed")
            assert await anext(stream, None) is None
        outputs = [(await each.result()).outputs[0].data for each in (running, *waiting)]
    assert len(set(outputs)) == 4


def _expect_unavailable(refused: Ending, reason: str) -> None:
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert refused.reason == reason
    assert refused.retry_seconds > 0


async def _refused(server: Server) -> Ending:
    """Ask for a generation that is refused with a status of ours."""
    async with stub_of(server.address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in stub.Generate(request_from(fields()), wait_for_ready=True):
                pass
    return ending(error.value)
