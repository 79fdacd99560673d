"""The generations that the parts ask a server for, and what they read off the answers."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.plan import NEGATIVE_PROMPT, PROMPT, SIDE, TRUE_CFG_SCALE
from ditcast.v1.acceleration_pb2 import CacheConfig, Disabled
from ditcast.v1.generation_pb2 import OutputFormat, OutputOptions, ProgressOptions
from ditcast_client import Client, GenerateRequest, Generation, Result


def generation(
    client: Client,
    *,
    steps: int,
    seed: int = 7,
    cached: bool = False,
    preview_every: int = 0,
    side: int = SIDE,
    output_format: OutputFormat.ValueType = OutputFormat.OUTPUT_FORMAT_PNG,
) -> Generation:
    """Make a generation with the server's cache, or with none."""
    request = GenerateRequest(
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        true_cfg_scale=TRUE_CFG_SCALE,
        width=side,
        height=side,
        num_inference_steps=steps,
        seed=seed,
        cache=None if cached else CacheConfig(disabled=Disabled()),
        progress=ProgressOptions(preview_every_n_steps=preview_every),
        output=OutputOptions(format=output_format),
    )
    return client.generate(request)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A generation that was awaited."""

    seconds: float
    """At the client: from before the request to the checked result."""
    result: Result

    @property
    def pipeline_seconds(self) -> float:
        """Give what the ranks spent in the pipeline: preparing, denoising, decoding."""
        timings = self.result.timings
        stages = (timings.prepare, timings.denoise, timings.decode)
        return sum(stage.ToTimedelta().total_seconds() for stage in stages)

    @property
    def encode_seconds(self) -> float:
        """Give what encoding took."""
        return self.result.timings.encode.ToTimedelta().total_seconds()


async def serve(made: Generation) -> Served:
    """Send the request and wait for its result."""
    began = time.perf_counter()
    result = await made.result()
    return Served(seconds=time.perf_counter() - began, result=result)
