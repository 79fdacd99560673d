"""Shows over gRPC what a kind of pipeline can do: with the cache on, on one rank and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load
from tests.distributed.generations import RAW, levels_apart, watch_until, watched
from tests.distributed.servers import START_SECONDS, Server, serve
from tests.kinds.kinds import PROMPT, SEED, STEPS, Kind
from tests.kinds.picture import encoded

from ditcast.v1.acceleration_pb2 import CacheConfig, DBCache
from ditcast.v1.capabilities_pb2 import PARAMETER_TYPE_IMAGE, PARAMETER_TYPE_IMAGE_LIST
from ditcast.v1.generation_pb2 import (
    CACHE_DECISION_CACHED,
    OUTPUT_FORMAT_LATENT_SAFETENSORS,
    OutputOptions,
)
from ditcast_client import Cancelled, Client
from ditcast_client.fields import GenerateFields

LATENTS = OutputOptions(format=OUTPUT_FORMAT_LATENT_SAFETENSORS)
LEFT_AT = 3
"""Step after which a generation is cancelled."""
FOR_EVER = 1000
_PICTURES = (PARAMETER_TYPE_IMAGE, PARAMETER_TYPE_IMAGE_LIST)


class Direct(Protocol):
    """Gives what a direct call makes."""

    def folder(self, kind: Kind) -> Path:
        """Give the folder of a model."""

    def direct(self, kind: Kind, threads: int) -> bytes:
        """Give the pixels that a direct call on so many threads makes."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What was shown of a kind."""

    kind: str
    """Its name."""
    cached: int
    """Steps of `STEPS` that were cached."""
    left_at: int | None
    """Last step that was reported of a generation that was cancelled; None: it cannot be."""
    inputs: tuple[str, ...]
    """Parameters that take pictures."""
    unit: int
    """Pixels that sides must be multiples of."""
    num_frames_step: int
    blocks: tuple[str, ...]
    """Lists of blocks that have a cache each."""
    two_ranks: float | None = None
    """Largest difference of the final latents between one rank and two; None: not on two."""


def asked(kind: Kind, output: OutputOptions = RAW) -> GenerateFields:
    """Give the request that stands for the direct call."""
    fields: GenerateFields = {
        "prompt": PROMPT,
        "width": kind.width,
        "height": kind.height,
        "num_inference_steps": STEPS,
        "seed": SEED,
        "output": output,
        "pipeline_kwargs": dict(kind.kwargs),
    }
    if kind.cached:
        fields["cache"] = CacheConfig(db_cache=DBCache(**kind.cache))  # type: ignore[arg-type]
    if kind.num_frames is not None:
        fields["num_frames"] = kind.num_frames
    if kind.guidance_scale is not None:
        fields["guidance_scale"] = kind.guidance_scale
    if kind.true_cfg_scale is not None:
        fields["true_cfg_scale"] = kind.true_cfg_scale
    if kind.negative_prompt is not None:
        fields["negative_prompt"] = kind.negative_prompt
    fields["images"] = [encoded(number) for number in range(kind.pictures)]
    return fields


async def show(kind: Kind, models: Direct, folder: Path, *, two_ranks: bool) -> Row:
    """Show it on one rank, and on two if asked for and possible."""
    model = ("--model", str(models.folder(kind)))
    one = serve(folder, *model)
    try:
        async with one.client() as client:
            pixels, threads, row = await _show_one(kind, client)
            assert pixels == models.direct(kind, threads)
            shared = two_ranks and not kind.two_ranks
            latents = await _latents(kind, client) if shared else None
        if not kind.cached:
            assert any(entry.get("event") == "served without a cache" for entry in one.entries())
        one.stop()
    finally:
        one.clear_away()
    if not two_ranks:
        return row
    if latents is None:
        _expect_refusal(kind, folder, *model)
        return row
    two = serve(folder, *model, "--world-size", "2")
    try:
        async with two.client() as client:
            result = await client.generate(**asked(kind)).result()
            assert levels_apart(result.outputs[0].data, pixels) <= 1
            difference = float(np.abs(await _latents(kind, client) - latents).max())
        assert difference <= 1e-3
        two.stop()
    finally:
        two.clear_away()
    return msgspec.structs.replace(row, two_ranks=difference)


async def _show_one(kind: Kind, client: Client) -> tuple[bytes, int, Row]:
    capabilities = await client.capabilities()
    events, result = await watched(client.generate(**asked(kind)))
    steps = [each.step_completed for each in events if each.HasField("step_completed")]
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert {step.total_steps for step in steps} == {STEPS}
    warned = [each.warning.field for each in events if each.HasField("warning")]
    assert ("cache" in warned) is not kind.cached
    [output] = result.outputs
    assert len(set(output.data)) > 32
    # Of two transformers that take turns, each has its own steps in the report.
    cached = sum(step.cache_decision == CACHE_DECISION_CACHED for step in steps)
    assert cached * 3 >= STEPS or not kind.cached
    if kind.cached:
        assert bool(result.cache.cfg_cached_steps) == (kind.passes > 1)
    left_at = await _leave(kind, client) if capabilities.cancellable else None
    again = await client.generate(**asked(kind)).result()
    assert again.outputs[0].data == output.data
    row = Row(
        kind=kind.name,
        cached=cached,
        left_at=left_at,
        inputs=tuple(each.name for each in capabilities.parameters if each.type in _PICTURES),
        unit=capabilities.limits.size_multiple,
        num_frames_step=capabilities.limits.num_frames_step,
        blocks=tuple(each.name for each in result.cache.transformers),
    )
    return output.data, result.receipt.threads_per_rank, row


async def _leave(kind: Kind, client: Client) -> int:
    """Cancel a long generation, and give the last step that it told of."""
    endless: GenerateFields = {**asked(kind), "num_inference_steps": FOR_EVER}
    leaving = client.generate(**endless)
    events = aiter(leaving)
    await watch_until(events, "step_completed", LEFT_AT)
    await leaving.cancel()
    last = LEFT_AT
    try:
        async for event in events:
            last = max(last, event.step_completed.step)
    except Cancelled:
        assert last < FOR_EVER // 10
        return last
    pytest.fail("it went on to its end")


def _expect_refusal(kind: Kind, folder: Path, *model: str) -> None:
    """Start with two ranks, and see why that is refused."""
    server = Server(folder, *model, "--world-size", "2")
    try:
        assert server.process.wait(START_SECONDS) == 2
        assert kind.two_ranks in server.log.read_text("utf-8")
    finally:
        server.clear_away()


async def _latents(kind: Kind, client: Client) -> np.ndarray:
    """Give the final latents as floats."""
    result = await client.generate(**asked(kind, LATENTS)).result()
    latents: np.ndarray = load(result.outputs[0].data)["latents"]
    return latents
