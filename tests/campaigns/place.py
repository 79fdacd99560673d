"""The place where a service runs: its operator, who starts it again whenever it has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.distributed.servers import START_SECONDS, Server

SERVING = health_pb2.HealthCheckResponse.SERVING
_POLL_SECONDS = 0.1
_CHECK_SECONDS = 10.0
_FOUND_SECONDS = 5.0
"""How long clients whose channels back off may take to find a service that has come back."""


class Place:
    """One address, and the services that live there one after the other.

    Attributes:
        server: What runs there.
        lives: How many services there were.
        up: Whether one runs that nobody has told to end.
        problems: What broke a promise about ending.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.lives = 1
        self.up = True
        self.problems: list[str] = []
        self._up_since = 0.0

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self.server.address

    def loss(self) -> Callable[[], bool]:
        """Give what says later on whether the service was lost, or just coming, from now on."""
        lives = self.lives
        here = self.up and time.monotonic() > self._up_since + _FOUND_SECONDS
        return lambda: not here or lives != self.lives

    async def kill(self, pause: float) -> None:
        """Kill the service, and start it again after a while."""
        self._goes()
        await asyncio.to_thread(self.server.kill)
        await self._again(pause)

    async def end(self, pause: float) -> None:
        """Let the service drain and stop, and start it again after a while."""
        self._goes()
        self.server.terminate()
        code = await asyncio.to_thread(self.server.wait)
        if code != 0:
            self.problems.append(f"a service that was told to end left exit code {code}")
        await self._again(pause)

    async def serving(self) -> bool:
        """Ask its health."""
        return await health_of(self.address)

    async def mended(self) -> None:
        """Wait until it serves; TimeoutError if it never does."""
        async with asyncio.timeout(START_SECONDS):
            while not await self.serving():  # noqa: ASYNC110 (another process)
                await asyncio.sleep(_POLL_SECONDS)

    def _goes(self) -> None:
        self.up = False
        self.lives += 1

    async def _again(self, pause: float) -> None:
        try:
            await asyncio.to_thread(self.server.expect_no_orphans)
        except AssertionError:
            self.problems.append("a process outlived its service")
        await asyncio.sleep(pause)
        await asyncio.to_thread(self.server.restart)
        self.up, self._up_since = True, time.monotonic()


async def health_of(address: str) -> bool:
    """Say whether the service there takes generations, by its own word."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            request = health_pb2.HealthCheckRequest(service="")
            answer = await stub.Check(request, timeout=_CHECK_SECONDS)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == SERVING)


async def until_gone(process: Any, seconds: float) -> bool:  # noqa: ANN401 (psutil.Process)
    """Wait until a process has ended; say whether it has."""
    limit = time.monotonic() + seconds
    while process.is_running():
        if time.monotonic() > limit:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True
