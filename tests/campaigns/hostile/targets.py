"""The servers that hostile requests are sent to, and what each must still do afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.campaigns.hostile.messages import PICTURE
from tests.distributed import inpaint_model
from tests.distributed.adapter_files import write_adapter
from tests.distributed.servers import Server, serve

from ditcast.v1.acceleration_pb2 import CacheConfig, Disabled
from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast.v1.generation_pb2 import INPUT_IMAGE_ROLE_MASK, InputImage

# Of 1 step neither could make anything: its schedule has none, and painting begins at the strength.
_BASE = GenerateRequest(prompt="x", width=64, height=64, num_inference_steps=2)
_PICTURES = (InputImage(data=PICTURE), InputImage(data=PICTURE, role=INPUT_IMAGE_ROLE_MASK))
_SAYS_TROUBLE = frozenset(
    {"rpc failed", "generation failed on the ranks", "the ranks were lost", "failed"}
)


@dataclass(frozen=True, slots=True)
class Target:
    """A pipeline, and a sound request for it."""

    name: str
    sound: GenerateRequest


STARTER = Target("embedded model", _BASE)
_PAINT = GenerateRequest(prompt="x", width=64, height=64, num_inference_steps=2, images=_PICTURES)
PICTURES = Target("embedded model with inpainting", _PAINT)


@contextlib.contextmanager
def served(folder: Path, target: Target) -> Iterator[Server]:
    """Serve a target on one rank; at the end it must be as it was at the beginning."""
    adapters = folder / target.name / "adapters"
    adapters.mkdir(parents=True)
    write_adapter(adapters / "a.safetensors", "attn.to_q", seed=1)
    flags = ["--listen", "127.0.0.1:0", "--adapter-folder", str(adapters)]
    if target is PICTURES:
        model = folder / target.name / "model"
        inpaint_model.make(model)
        flags += ["--model", str(model)]
    server = serve(folder, *flags)
    try:
        yield server
        server.stop()
    finally:
        server.clear_away()


def goes_on(server: Server, target: Target, ranks: list[int]) -> None:
    """Hold a server to its promise: it serves, on the same ranks, and blames nothing on itself."""
    asyncio.run(still_serves(server, target))
    assert [rank.pid for rank in server.ranks()] == ranks
    found = [entry for entry in server.entries() if entry.get("event") in _SAYS_TROUBLE]
    assert found == []


async def still_serves(server: Server, target: Target) -> None:
    """Make a picture, and ask for the health."""
    async with server.client() as client, grpc.aio.insecure_channel(server.address) as channel:
        made = client.generate(
            prompt="x",
            width=64,
            height=64,
            num_inference_steps=2,
            images=list(target.sound.images),
            # Whatever a hostile Configure has left in force.
            cache=CacheConfig(disabled=Disabled()),
        )
        assert (await made.result()).outputs
        probe: Any = health_pb2_grpc.HealthStub(channel)
        answer = await probe.Check(health_pb2.HealthCheckRequest(service=""))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
