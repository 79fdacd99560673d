"""What keeps a configuration from running on the loaded pipeline, found without touching a rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

import msgspec

from ditcast_runtime.config import Configuration, EngineConfig, GenerationDefaults
from ditcast_runtime.messages import Facts
from ditcast_runtime.settings import (
    Disabled,
    ParallelismSettings,
    Problem,
    check_attention_backend,
    check_cache,
    check_loading,
    check_parallelism,
    check_quantize,
)
from ditcast_service.forms import check_video_defaults
from ditcast_service.sizes import Sizes


def check_configuration(
    configuration: Configuration, loaded: ParallelismSettings, facts: Facts, config: EngineConfig
) -> list[Problem]:
    """Find everything that cannot run.

    Args:
        configuration: What to check, with its degrees resolved.
        loaded: How the pipeline that the facts tell of is split.
        facts: What is known of it.
        config: The limits.
    """
    parallelism = configuration.parallelism
    sharded = parallelism.context_parallel_degree > 1
    accelerator = facts.device != "cpu"
    if parallelism != loaded and config.world_size > 1:
        facts = msgspec.structs.replace(facts, shard_multiple=parallelism.equal_parts)
    problems = [
        *check_cache(
            configuration.cache,
            num_blocks={each.name: each.num_blocks for each in facts.transformers} or None,
            context_parallel=sharded,
        ),
        *_check_support(configuration, facts, reloaded=parallelism != loaded),
        *check_parallelism(
            parallelism,
            world_size=config.world_size,
            num_heads={each.name: each.num_heads for each in facts.transformers if each.num_heads},
            accelerator=accelerator,
        ),
        *_check_modes(parallelism, facts),
        *check_attention_backend(
            configuration.attention_backend, context_parallel=sharded, accelerator=accelerator
        ),
        *_check_defaults(configuration.defaults, facts, config),
        *check_loading(
            configuration.loading,
            parallelism=parallelism,
            components=facts.components or None,
            faults=facts.loading_faults,
            accelerator=accelerator,
        ),
    ]
    if configuration.quantize is not None:
        problems += check_quantize(configuration.quantize, accelerator=accelerator)
    return problems


def _check_support(
    configuration: Configuration, facts: Facts, *, reloaded: bool
) -> Iterator[Problem]:
    """Refuse a method or calibrator that the pipeline lacks; each split has its own answer."""
    cache = configuration.cache
    if isinstance(cache.method, Disabled):
        return
    chosen = [each.__struct_config__.tag for each in (cache.method, cache.calibrator) if each]
    for support in facts.cache_methods:
        if support.name in chosen and not support.possible:
            if support.name == "db_prune" and reloaded:
                continue  # Whether it can be pruned hangs on the split, which is to change.
            yield Problem(f"cache.{support.name}", support.reason, "unsupported")


def _check_modes(parallelism: ParallelismSettings, facts: Facts) -> Iterator[Problem]:
    """Refuse ways of splitting that the pipeline lacks."""
    extra = parallelism.extra_parallel_modules
    uses_ulysses = parallelism.ulysses_degree > 1
    asked = {
        "ulysses": ("ulysses_degree", uses_ulysses),
        "ring": ("ring_degree", parallelism.ring_degree > 1),
        "tensor": ("tensor_parallel_degree", parallelism.tensor_parallel_degree > 1),
        "ulysses_anything": ("ulysses_anything", uses_ulysses and parallelism.ulysses_anything),
        "ulysses_float8": ("ulysses_float8", parallelism.ulysses_float8),
        "ulysses_async": ("ulysses_async", parallelism.ulysses_async),
        "text_encoder": (
            "extra_parallel_modules",
            any(name.startswith("text_encoder") for name in extra),
        ),
        "vae": ("extra_parallel_modules", any(name.endswith("vae") for name in extra)),
        "controlnet": (
            "extra_parallel_modules",
            any(name.startswith("controlnet") for name in extra),
        ),
    }
    for support in facts.parallel_modes:
        name, wanted = asked.get(support.name, ("", False))
        if wanted and not support.possible:
            yield Problem(f"parallelism.{name}", support.reason, "unsupported")


def _check_defaults(
    defaults: GenerationDefaults, facts: Facts, config: EngineConfig
) -> Iterator[Problem]:
    """Hold defaults to what requests are held to."""
    taken = {fact.name for fact in facts.parameters}
    for problem in check_video_defaults(defaults, facts, config):
        yield Problem(f"defaults.{problem.field}", problem.reason)
    for each in fields(defaults):
        if each.name in ("num_frames", "fps"):
            continue
        if getattr(defaults, each.name) is not None and each.name not in taken:
            yield Problem(f"defaults.{each.name}", "the loaded pipeline takes none")
    steps, most = defaults.num_inference_steps, config.max_num_inference_steps
    if steps is not None and not 1 <= steps <= most:
        reason = f"{steps} steps are out of range: 1 to {most}"
        yield Problem("defaults.num_inference_steps", reason)
    for name in ("guidance_scale", "true_cfg_scale"):
        scale: float | None = getattr(defaults, name)
        if scale is not None and not (math.isfinite(scale) and scale >= 0):
            reason = f"{scale} is out of range: a finite number from 0"
            yield Problem(f"defaults.{name}", reason)
    size, limit = len((defaults.negative_prompt or "").encode()), config.max_prompt_bytes
    if size > limit:
        reason = f"it is {size} bytes of UTF-8 long; {limit} are allowed"
        yield Problem("defaults.negative_prompt", reason)
    yield from _check_size(defaults, facts, config)


def _check_size(
    defaults: GenerationDefaults, facts: Facts, config: EngineConfig
) -> Iterator[Problem]:
    """Check the size of a request that names none, as far as the defaults say it."""
    given = {"width": defaults.width, "height": defaults.height}
    sides = [side for side in given.values() if side is not None]
    if not sides:
        return
    width = _first(defaults.width, facts.default_width, sides[0])
    height = _first(defaults.height, facts.default_height, sides[0])
    for problem in Sizes.of(facts, config, 1).check(width, height):
        name = problem.field if given[problem.field] is not None else _given_name(given)
        yield Problem(f"defaults.{name}", problem.reason)


def _first(*sides: int | None) -> int:
    return next(side for side in sides if side is not None)


def _given_name(given: dict[str, int | None]) -> str:
    """Name the side that the defaults set, where the fault was found at the other one."""
    return next(name for name, side in given.items() if side is not None)
