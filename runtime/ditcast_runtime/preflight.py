"""Checks the settings against the loaded pipeline and the device, before cache-dit is enabled.

The service has checked what can be known without torch; here the blocks, heads, components and the
device are known. All problems at once, in place of an assertion deep inside the first forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ditcast_runtime.acceleration import BlockList, support
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import (
    Acceleration,
    Disabled,
    ParallelismSettings,
    Problem,
    QuantizeSettings,
    check_attention_backend,
    check_cache,
    check_parallelism,
    check_quantize,
)
from ditcast_runtime.settings.problems import one_per_field


def check_acceleration(
    acceleration: Acceleration,
    world_size: int,
    kind: str,
    components: Mapping[str, Any],
    block_lists: tuple[BlockList, ...],
    device: torch.device,
) -> None:
    """Raise ConfigError with everything that this pipeline cannot do on this device."""
    problems = [*_check_settings(acceleration, world_size, components, block_lists, device)]
    if block_lists:
        problems += _check_support(acceleration, kind, components, block_lists, device)
    else:
        problems += _unknown_to_cache_dit(acceleration, kind)
    if acceleration.attention_backend is not None:
        models = _models(components, block_lists)
        reason = support.attention_fault(models, acceleration.attention_backend, device)
        problems += _refused("attention_backend", reason)
    if problems:
        raise ConfigError(one_per_field(problems))


def _check_settings(
    acceleration: Acceleration,
    world_size: int,
    components: Mapping[str, Any],
    block_lists: tuple[BlockList, ...],
    device: torch.device,
) -> Iterator[Problem]:
    """Check the values, with all numbers known."""
    accelerated = device.type != "cpu"
    parallelism = acceleration.parallelism
    sharded = parallelism is not None and parallelism.context_parallel_degree > 1
    yield from check_cache(
        acceleration.cache,
        num_blocks={entry.name: len(entry.blocks) for entry in block_lists} or None,
        context_parallel=sharded,
    )
    if parallelism is not None:
        yield from check_parallelism(
            parallelism,
            world_size=world_size,
            num_heads=_heads(block_lists) or None,
            components=components,
            accelerator=accelerated,
        )
    if acceleration.quantize is not None:
        yield from check_quantize(
            acceleration.quantize, components=components, accelerator=accelerated
        )
    if acceleration.attention_backend is not None:
        yield from check_attention_backend(
            acceleration.attention_backend,
            prefix="attention_backend",
            context_parallel=sharded,
            accelerator=accelerated,
        )


def _check_support(
    acceleration: Acceleration,
    kind: str,
    components: Mapping[str, Any],
    block_lists: tuple[BlockList, ...],
    device: torch.device,
) -> Iterator[Problem]:
    """Check what cache-dit and the installed packages can do with these very classes."""
    models = _models(components, block_lists)
    parallelism = acceleration.parallelism
    if parallelism is not None and parallelism.world_size > 1:
        yield from _check_parallel(parallelism, kind, components, models)
        if parallelism.attention_backend is not None:
            reason = support.attention_fault(models, parallelism.attention_backend, device)
            yield from _refused("parallelism.attention_backend", reason)
    if acceleration.quantize is not None:
        yield from _check_quantize(acceleration.quantize, models, device)


def _check_parallel(
    parallelism: ParallelismSettings,
    kind: str,
    components: Mapping[str, Any],
    models: tuple[torch.nn.Module, ...],
) -> Iterator[Problem]:
    """Check that cache-dit has a plan for each class that is to be split."""
    world_size = parallelism.world_size
    for degree in ("ulysses_degree", "ring_degree"):
        if getattr(parallelism, degree) > 1:
            yield from _refused(f"parallelism.{degree}", support.context_fault(models))
    if parallelism.tensor_parallel_degree > 1:
        field = "parallelism.tensor_parallel_degree"
        yield from _refused(field, support.tensor_fault(models))
    if parallelism.ulysses_async:
        yield from _refused("parallelism.ulysses_async", support.async_fault(models))
    for name in parallelism.extra_parallel_modules:
        reason = support.module_fault(kind, components, name, world_size)
        yield from _refused("parallelism.extra_parallel_modules", reason)


def _check_quantize(
    settings: QuantizeSettings, models: tuple[torch.nn.Module, ...], device: torch.device
) -> Iterator[Problem]:
    """Check that this machine can make such weights."""
    dtype = next(models[0].parameters()).dtype
    reason = support.quantize_fault(settings.quant_type, dtype, device)
    yield from _refused("quantize.quant_type", reason)
    for entry in settings.components_to_quantize:
        field = f"quantize.components_to_quantize.{entry.component}.quant_type"
        reason = support.quantize_fault(entry.quant_type or settings.quant_type, dtype, device)
        yield from _refused(field, reason)


def _refused(field: str, reason: str) -> Iterator[Problem]:
    if reason:
        yield Problem(field, reason, "unsupported")


def _models(
    components: Mapping[str, Any], block_lists: tuple[BlockList, ...]
) -> tuple[torch.nn.Module, ...]:
    """Give each transformer once."""
    known = {id(entry.transformer): entry.transformer for entry in block_lists}
    own = components.get("transformer")
    return tuple(known.values()) or (() if own is None else (own,))


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
