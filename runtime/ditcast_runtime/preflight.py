"""Checks the settings against the loaded pipeline and the device, before cache-dit is enabled.

The service has checked what can be known without torch; here the blocks, heads, components and the
device are known. All problems at once, in place of an assertion deep inside the first forward pass.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from ditcast_runtime.acceleration import BlockList
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import (
    Acceleration,
    Disabled,
    Problem,
    check_attention_backend,
    check_cache,
    check_parallelism,
    check_quantize,
)


def check_acceleration(
    acceleration: Acceleration,
    world_size: int,
    kind: str,
    components: Collection[str],
    block_lists: tuple[BlockList, ...],
    device: torch.device,
) -> None:
    """Raise ConfigError with everything that this pipeline cannot do on this device."""
    accelerated = device.type != "cpu"
    parallelism = acceleration.parallelism
    sharded = parallelism is not None and parallelism.context_parallel_degree > 1
    problems: list[Problem] = []
    if not block_lists:
        problems += _unknown_to_cache_dit(acceleration, kind)
    problems += check_cache(
        acceleration.cache,
        num_blocks={entry.name: len(entry.blocks) for entry in block_lists} or None,
        context_parallel=sharded,
    )
    if parallelism is not None:
        problems += check_parallelism(
            parallelism,
            world_size=world_size,
            num_heads=_heads(block_lists) or None,
            components=components,
            accelerator=accelerated,
        )
    if acceleration.quantize is not None:
        problems += check_quantize(
            acceleration.quantize, components=components, accelerator=accelerated
        )
    if acceleration.attention_backend is not None:
        problems += check_attention_backend(
            acceleration.attention_backend,
            prefix="attention_backend",
            context_parallel=sharded,
            accelerator=accelerated,
        )
    if problems:
        raise ConfigError(tuple(problems))


def _heads(block_lists: tuple[BlockList, ...]) -> dict[str, int]:
    heads = {}
    for entry in block_lists:
        count = getattr(entry.transformer.config, "num_attention_heads", None)
        if isinstance(count, int):
            heads[entry.component] = count
    return heads


def _unknown_to_cache_dit(acceleration: Acceleration, kind: str) -> list[Problem]:
    """Refuse settings that need cache-dit to know the pipeline; without any it is served as is."""
    asked = {
        "cache": not isinstance(acceleration.cache.method, Disabled),
        "parallelism": acceleration.parallelism is not None,
        "quantize": acceleration.quantize is not None,
    }
    reason = f"cache-dit does not know {kind}"
    return [Problem(name, reason, "unsupported") for name, wanted in asked.items() if wanted]
