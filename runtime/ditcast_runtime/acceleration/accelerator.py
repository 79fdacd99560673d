"""Enables cache-dit on a pipeline, switches it between generations and reads its decisions.

What was measured and shaped this file: on a pipeline `refresh_context` does nothing, so a switch is
`disable_cache` and `enable_cache`; on a pipeline that never ran, enabling the cache after
parallelism fails, so both are enabled in one call before the warm-up and only then switched; an
exception inside `enable_cache` leaves marks that make the next one keep the old settings in
silence, so what the pipeline holds is read back after each switch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import cache_dit
import torch
from cache_dit import BlockAdapter, CalibratorConfig
from cache_dit.caching import BlockAdapterRegister

from ditcast_runtime.acceleration import support
from ditcast_runtime.acceleration.cpu import accelerator_on_cpu
from ditcast_runtime.events import CacheDecision, TransformerDecision
from ditcast_runtime.settings import (
    DMD,
    Acceleration,
    CacheSettings,
    DBCache,
    DBPrune,
    Disabled,
    FoCa,
    ParallelismSettings,
    TaylorSeer,
    cache_options,
    calibrator_options,
    parallelism_options,
    quantize_options,
)


class SettingsDiffer(Exception):
    """The pipeline holds other cache settings than it was told to: this rank must be replaced."""


@dataclasses.dataclass(frozen=True, slots=True)
class BlockList:
    """One list of transformer blocks that cache-dit wraps, with a cache context of its own."""

    name: str
    """`transformer`, or `transformer.blocks_name` where a transformer has several lists."""
    component: str
    blocks: torch.nn.ModuleList
    transformer: torch.nn.Module

    def held(self) -> dict[str, Any]:
        """Give what cache-dit has noted of its cache on the list, nothing where it caches nothing.

        Of FLUX.1 it joins two lists into a new one at each call: the note is on the transformer.
        """
        noted = getattr(self.blocks, "_context_kwargs", None)
        if noted is None:
            noted = getattr(self.transformer, "_context_kwargs", None)
        return dict(noted or {})


@dataclasses.dataclass(slots=True)
class _Counters:
    """How far one cache context had come when it was last read."""

    executed: int = 0
    cached: int = 0
    cfg_cached: int = 0


class Accelerator:
    """cache-dit on one pipeline."""

    def __init__(
        self, pipe: Any, acceleration: Acceleration, world_size: int, device: torch.device
    ) -> None:
        self._pipe = pipe
        self._acceleration = acceleration
        self._world_size = world_size
        self._device = device
        self.block_lists = _find_block_lists(pipe)
        self.has_separate_cfg = bool(BlockAdapterRegister.has_separate_cfg(pipe))
        self._held: tuple[CacheSettings, int] | None = None
        self._two_passes = False
        self._counters: list[_Counters] = []
        self._steps = 0
        self.switching: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        """What has to hold while the cache is switched."""

    @property
    def transformers(self) -> tuple[torch.nn.Module, ...]:
        """What denoises, each transformer once, whether or not cache-dit knows it."""
        known = {id(entry.transformer): entry.transformer for entry in self.block_lists}
        own = getattr(self._pipe, "transformer", None)
        return tuple(known.values()) or (() if own is None else (own,))

    @property
    def cacheable(self) -> bool:
        """Whether cache-dit knows the pipeline's blocks."""
        return bool(self.block_lists)

    @property
    def held(self) -> tuple[CacheSettings, int] | None:
        """What `switch` has verified: the settings, and the steps their mask is laid out for."""
        return self._held

    @property
    def expected_passes(self) -> int | None:
        """Runs of a transformer in each step that the cache is set for; None: nothing is cached."""
        if self._held is None or isinstance(self._held[0].method, Disabled):
            return None
        return 2 if self._two_passes else 1

    def mode_faults(self) -> dict[str, str]:
        """Say of each way of splitting why this pipeline cannot have it here; empty: it can."""
        known = self.transformers if self.cacheable else ()
        return support.mode_faults(self._pipe, known, self._world_size, self._device)

    def enable(self) -> None:
        """Enable parallelism, quantisation and attention backend; `switch` puts a cache on top.

        In this order: `disable_cache` gives a transformer back the forward that it had before, and
        with it would go what splits its inputs over the ranks.
        """
        options = self._fixed_options()
        if options:
            with accelerator_on_cpu(self._device):
                cache_dit.enable_cache(self._pipe, **options)
        if self._acceleration.attention_backend is not None and not self._parallel:
            # Left to enable_cache, only the first of several transformers would get it.
            for transformer in self.transformers:
                cache_dit.set_attn_backend(transformer, self._acceleration.attention_backend)

    def switch(
        self, settings: CacheSettings, num_inference_steps: int, *, two_passes: bool
    ) -> None:
        """Make the pipeline hold `settings`; nothing happens if it verifiably does.

        Raises:
            SettingsDiffer: it was told to and does not.
            ValueError: cache-dit refused the settings, and nothing is cached now.
        """
        self._two_passes = two_passes
        self._counters = [_Counters() for _ in self.block_lists]
        self._steps = 0
        # Only a mask depends on the number of steps.
        masked = (
            not isinstance(settings.method, Disabled) and settings.method.steps_computation_mask
        )
        wanted = (settings, num_inference_steps if masked else 0)
        if not self.cacheable or self._held == wanted:
            return
        self._held = None
        with self.switching():
            cache_dit.disable_cache(self._pipe)
            config, calibrator = _configs(settings, num_inference_steps)
            if config is not None:
                self._enable_cache(config, calibrator)
            self._verify(config, calibrator)
        self._held = wanted

    def _enable_cache(self, config: Any, calibrator: Any) -> None:
        # Parallelism, quantisation and attention stay out: they are in place, and a second time
        # would shard what is sharded.
        try:
            cache_dit.enable_cache(
                self._known_blocks(), cache_config=config, calibrator_config=calibrator
            )
        except (AssertionError, ValueError, TypeError) as error:
            cache_dit.disable_cache(self._pipe)
            # Raises if marks of the half-done call are left: then only a reload helps.
            self._verify(None, None)
            raise ValueError(f"cache-dit refused the settings: {error}") from error

    def _known_blocks(self) -> Any:
        # Their signatures were checked at the start: parallelism hides some behind its hooks.
        adapter: Any = BlockAdapterRegister.get_adapter(self._pipe)
        adapter.check_forward_pattern = False
        adapter.check_num_outputs = False
        return adapter

    def decisions(self) -> tuple[TransformerDecision, ...]:
        """Say what the cache did in the step that just ended, for each block list that ran."""
        contexts = self._contexts()
        if contexts is None:
            cfg = CacheDecision.COMPUTED if self._two_passes else None
            return tuple(
                TransformerDecision(
                    name=entry.name, decision=CacheDecision.COMPUTED, cfg_decision=cfg
                )
                for entry in self.block_lists
            )
        found = []
        for entry, context, counters in zip(
            self.block_lists, contexts, self._counters, strict=True
        ):
            if context.get_accumulated_executed_steps() > counters.executed:
                if counters.executed == 0:
                    _align_mask(context, self._steps)
                found.append(_decision(entry.name, context, counters))
        self._steps += 1
        return tuple(found)

    def reset(self) -> None:
        """Drop the tensors that the cache keeps from one generation."""
        manager = getattr(self._pipe, "_context_manager", None)
        if manager is not None:
            manager.clear_contexts()

    def _contexts(self) -> list[Any] | None:
        manager = getattr(self._pipe, "_context_manager", None)
        if manager is None:
            return None
        # By name: a context that starts afresh in the middle of a call moves behind the others.
        names = [entry.held()["name"] for entry in self.block_lists]
        return [manager.get_context(name) for name in names]

    @property
    def _parallel(self) -> bool:
        return self._acceleration.parallelism is not None and self._world_size > 1

    def _fixed_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        parallelism = self._acceleration.parallelism
        if parallelism is not None and self._parallel:
            options["parallelism_config"] = _parallelism_config(parallelism)
            options["attention_backend"] = self._acceleration.attention_backend
        if self._acceleration.quantize is not None:
            quantize: dict[str, Any] = quantize_options(self._acceleration.quantize)
            options["quantize_config"] = cache_dit.QuantizeConfig(**quantize)
        return options

    def _verify(self, config: Any, calibrator: Any) -> None:
        cached = BlockAdapter.is_cached(self._pipe)
        if config is None:
            if cached or any(
                BlockAdapter.is_cached(entry.transformer) for entry in self.block_lists
            ):
                raise SettingsDiffer("the cache is still enabled")
            return
        if not cached:
            raise SettingsDiffer("the cache is not enabled")
        for entry in self.block_lists:
            held = entry.held()
            if held.get("cache_config") != config or held.get("calibrator_config") != calibrator:
                raise SettingsDiffer(f"{entry.name} holds {held}")


def _decision(name: str, context: Any, counters: _Counters) -> TransformerDecision:
    """Compare a context with what was last read of it, and remember it as it is now."""
    saved = CacheDecision.PRUNED if hasattr(context, "pruned_blocks") else CacheDecision.CACHED
    step = str(context.get_current_step())
    separate = bool(context.cache_config.enable_separate_cfg)
    cached = context.get_accumulated_cached_steps()
    cfg_cached = context.get_cfg_accumulated_cached_steps()
    decision = TransformerDecision(
        name=name,
        decision=saved if cached > counters.cached else CacheDecision.COMPUTED,
        residual_diff=_residual_diff(context.residual_diffs, step),
        cfg_decision=(
            (saved if cfg_cached > counters.cfg_cached else CacheDecision.COMPUTED)
            if separate
            else None
        ),
        cfg_residual_diff=_residual_diff(context.cfg_residual_diffs, step) if separate else None,
    )
    counters.executed = context.get_accumulated_executed_steps()
    counters.cached, counters.cfg_cached = cached, cfg_cached
    return decision


def _align_mask(context: Any, steps_before: int) -> None:
    """Let a context that began later read a mask from there: it counts its own steps alone.

    A transformer that takes over in the middle, as the second of Wan 2.2 does, would follow the
    mask from its beginning. The settings that it began with stay as they are for the next call.
    """
    mask = context.cache_config.steps_computation_mask
    if mask is not None and steps_before > 0:
        context.cache_config = dataclasses.replace(
            context.cache_config, steps_computation_mask=mask[steps_before:]
        )


def _residual_diff(diffs: dict[str, Any], step: str) -> float | None:
    """Give the difference measured in a step; block pruning measures several, whose mean it is.

    None where nothing was measured: cache-dit then notes nothing, or a negative number (-1 under a
    threshold from 1 on, which every step is below; -2 between states of different shapes).
    """
    noted = diffs.get(step, [])
    measured = [value for value in (noted if isinstance(noted, list) else [noted]) if value >= 0]
    return float(sum(measured) / len(measured)) if measured else None


def _find_block_lists(pipe: Any) -> tuple[BlockList, ...]:
    """List the blocks that cache-dit's registry knows of this pipeline, if it knows it."""
    if not BlockAdapterRegister.is_supported(pipe):
        return ()
    known: Any = BlockAdapterRegister.get_adapter(pipe)
    adapter: Any = BlockAdapter.normalize(known, unique=False)
    components = {id(module): name for name, module in pipe.components.items()}
    found = []
    for transformer, lists, names in zip(
        adapter.transformer, adapter.blocks, adapter.blocks_name, strict=True
    ):
        component = components.get(id(transformer), "transformer")
        for blocks, name in zip(lists, names, strict=True):
            label = component if len(lists) == 1 else f"{component}.{name}"
            found.append(BlockList(label, component, blocks, transformer))
    return tuple(found)


def _configs(settings: CacheSettings, num_inference_steps: int) -> tuple[Any, Any]:
    """Make cache-dit's own configuration objects; (None, None) where nothing is to be cached."""
    options: dict[str, Any] = cache_options(settings)
    mask = options.get("steps_computation_mask")
    if isinstance(mask, str):
        options["steps_computation_mask"] = cache_dit.steps_mask(
            mask_policy=mask, total_steps=num_inference_steps
        )
    # A context that counts its steps restarts itself in the middle of a call whose scheduler makes
    # more of them; without the number it starts afresh with each call, which is what is wanted.
    options.pop("num_inference_steps", None)
    if mask is not None:
        options["num_inference_steps"] = num_inference_steps
    match settings.method:
        case Disabled():
            return None, None
        case DBCache():
            config: Any = cache_dit.DBCacheConfig(**options)
        case DBPrune():
            config = cache_dit.DBPruneConfig(**options)
    return config, _calibrator(settings)


def _calibrator(settings: CacheSettings) -> CalibratorConfig | None:
    options: dict[str, Any] = calibrator_options(settings)
    match settings.calibrator:
        case None:
            return None
        case TaylorSeer():
            return cache_dit.TaylorSeerCalibratorConfig(**options)
        case DMD():
            return cache_dit.DMDCalibratorConfig(**options)
        case FoCa():
            return cache_dit.FoCaCalibratorConfig(**options)


def _parallelism_config(settings: ParallelismSettings) -> Any:
    options: dict[str, Any] = parallelism_options(settings)
    return cache_dit.ParallelismConfig(**options)
