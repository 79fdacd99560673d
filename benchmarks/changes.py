"""What changes and accidents cost: a live Configure, lost ranks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.figures import Figure, Subject
from benchmarks.plan import Plan, Tick
from benchmarks.processes import Server, serving, threads_of
from ditcast.v1.acceleration_pb2 import CacheConfig, Configuration, DBCache
from ditcast.v1.diffusion_service_pb2 import ConfigureRequest
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub

_THRESHOLDS = (0.08, 0.12)
_SETTLE_SECONDS = 1.0


def ticks(plan: Plan) -> int:
    """Say how often `measure` calls its tick for one world size."""
    return plan.configures + plan.losses


async def measure(plan: Plan, world_size: int, tick: Tick) -> list[Figure]:
    """Start a server for it: its start is one of the figures, and its ranks are killed."""
    began = time.perf_counter()
    async with serving(world_size) as server:
        cold = time.perf_counter() - began
        configures = await _configures(server.address, plan.configures, tick)
        losses = [await _loss(server, tick) for _ in range(plan.losses)]
    return _figures(world_size, cold, configures, losses)


async def _configures(address: str, count: int, tick: Tick) -> list[float]:
    """Change the cache of idle ranks, again and again; seconds of each call."""
    seconds = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = DiffusionServiceStub(channel)
        for number in range(count + 1):
            cache = DBCache(
                fn_compute_blocks=1, residual_diff_threshold=_THRESHOLDS[number % len(_THRESHOLDS)]
            )
            wanted = Configuration(cache=CacheConfig(db_cache=cache))
            began = time.perf_counter()
            await stub.Configure(ConfigureRequest(configuration=wanted))
            seconds.append(time.perf_counter() - began)
            tick()
    return seconds[1:]


async def _loss(server: Server, tick: Tick) -> float:
    """Kill a rank and give the seconds until the service is SERVING again."""
    serving_now = health_pb2.HealthCheckResponse.SERVING
    async with grpc.aio.insecure_channel(server.address) as channel:
        # Its type has no streaming method.
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        answers = aiter(watch)
        await anext(answers)
        began = time.perf_counter()
        server.ranks()[-1].kill()
        async for answer in answers:
            if answer.status == serving_now:
                break
        seconds = time.perf_counter() - began
        watch.cancel()
    await asyncio.sleep(_SETTLE_SECONDS)
    tick()
    return seconds


def _figures(
    world_size: int, cold: float, configures: list[float], losses: list[float]
) -> list[Figure]:
    subject = Subject("changes", world_size, threads_of(world_size))
    return [
        subject.figure(
            f"configure_live_{world_size}",
            "Live Configure, idle ranks",
            "ms",
            [seconds * 1000 for seconds in configures],
            target=50.0,
            note="request to answer: prepared, voted and in force on all ranks",
        ),
        subject.figure(
            f"restart_ratio_{world_size}",
            "Killed rank to SERVING, of a cold start",
            "ratio",
            [seconds / cold for seconds in losses],
            target=1.2,
            note=f"the cold start took {cold:.1f} s",
        ),
    ]
