"""Caching as the domain says it: one method and at most one calibrator, each a closed union.

Every default below is cache-dit's own, and a test compares them field by field with its classes.
Names are cache-dit's in lower snake case; `cache_options` and `calibrator_options` give its own
spelling back. What may be wrong with the values is in `cache_checks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec


class Disabled(msgspec.Struct, frozen=True, kw_only=True, tag="disabled"):
    """No caching: every step is computed in full."""


class StepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What DBCache and DBPrune share: when a step is computed and when it may be reused."""

    fn_compute_blocks: int = 8
    """First blocks that every step computes, 1 to the number of blocks."""
    bn_compute_blocks: int = 0
    """Last blocks that every step computes, from 0."""
    residual_diff_threshold: float = 0.08
    """Relative L1 difference of the residual below which it is reused, from 0. 0: never; from 1
    on: always, and the difference is not measured."""
    max_accumulated_residual_diff_threshold: float | None = None
    """Sum of the differences measured in a generation, over 0, from which all further steps are
    computed. None: no bound."""
    max_warmup_steps: int = 8
    """First steps that are not reused, from 0."""
    warmup_interval: int = 1
    """Of the first steps every n-th is computed, from 1."""
    max_cached_steps: int = -1
    """Most reused steps of a generation, from 0. -1: no bound."""
    max_continuous_cached_steps: int = -1
    """Most reused steps in a row, from 0. -1: no bound."""
    enable_separate_cfg: bool | None = None
    """Whether a step makes two transformer calls. None: found out for each request."""
    cfg_compute_first: bool = False
    """Whether the call without the prompt comes first."""
    cfg_diff_compute_separate: bool = True
    """Whether that call is judged by its own difference."""
    num_inference_steps: int | None = None
    """Steps after which cache-dit starts afresh, from 1. The format has it, but it belongs to the
    request: the ranks replace it by the request's number before they run."""
    steps_computation_mask: tuple[int, ...] | str | None = None
    """One entry a step, 1: compute, 0: may be reused; or the name of a ready-made mask, fitted to
    each request's number of steps. None: no mask."""
    steps_computation_policy: str = "dynamic"
    """At a 0 of the mask: `dynamic` asks the difference, `static` always reuses."""
    force_refresh_step_hint: int | None = None
    """Transformer call, counted from 1, after which the cache starts afresh. None: never."""
    force_refresh_step_policy: str = "once"
    """Whether that happens `once`, or again every so many calls (`repeat`)."""


class DBCache(StepOptions, frozen=True, kw_only=True, tag="db_cache"):
    """Dual block cache: a step is reused as a whole if its first blocks have changed little."""


class DBPrune(StepOptions, frozen=True, kw_only=True, tag="db_prune"):
    """Dynamic block prune: single blocks of a step are skipped if they have changed little."""

    enable_dynamic_prune_threshold: bool = False
    """Whether the threshold follows the mean difference of the blocks seen so far."""
    max_dynamic_prune_threshold: float | None = None
    """Bound of the moving threshold, over 0. None: twice `residual_diff_threshold`."""
    dynamic_prune_threshold_relax_ratio: float = 1.25
    """Factor from the mean difference to the moving threshold, over 0."""
    non_prune_block_ids: tuple[int, ...] = ()
    """Blocks, counted from 0, that are never skipped."""
    force_reduce_calibrator_vram: bool = False
    """Whether the difference is taken on every fourth channel, to save device memory."""


class TaylorSeer(msgspec.Struct, frozen=True, kw_only=True, tag="taylor_seer"):
    """Forecast by a Taylor expansion."""

    taylorseer_order: int = 1
    """Order of the expansion, 1 to 4."""
    enable_encoder_calibrator: bool = True
    """Whether the text stream is forecast as well. cache-dit's files say False when unset."""
    calibrator_cache_type: str = "residual"
    """What is forecast: `residual` or `hidden_states`."""


class DMD(msgspec.Struct, frozen=True, kw_only=True, tag="dmd"):
    """Forecast by dynamic mode decomposition (Prony's method)."""

    dmd_history: int = 6
    """Computed steps kept for the fit, from 4: with fewer it never engages."""
    dmd_rank: int = 0
    """Rank to which the snapshots are cut, from 0. 0: chosen from the spectrum."""
    dmd_ridge: float = 1e-8
    """Tikhonov term of the inverted singular values, from 0."""
    dmd_svd_precision: str = "medium"
    """`low`: randomised, `medium`: the default driver, `high`: the exact one."""
    enable_encoder_calibrator: bool = True
    """Whether the text stream is forecast as well."""
    calibrator_cache_type: str = "residual"
    """What is forecast: `residual` or `hidden_states`."""


class FoCa(msgspec.Struct, frozen=True, kw_only=True, tag="foca"):
    """Forecast, then calibrate."""

    enable_encoder_calibrator: bool = True
    """Whether the text stream is forecast as well. cache-dit's files say False when unset."""
    calibrator_cache_type: str = "residual"
    """What is forecast: `residual` or `hidden_states`."""


CacheMethod = Disabled | DBCache | DBPrune
"""How steps are saved."""

Calibrator = TaylorSeer | DMD | FoCa
"""How a reused value is forecast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """Caching for one request, or for all that bring no settings of their own."""

    method: CacheMethod = field(default_factory=Disabled)
    """How steps are saved; nothing is cached unless it says so."""
    calibrator: Calibrator | None = None
    """How a reused value is forecast. None: the last computed value is used as it is."""


CACHE_SPELLINGS = {
    "fn_compute_blocks": "Fn_compute_blocks",
    "bn_compute_blocks": "Bn_compute_blocks",
}
"""Field names that cache-dit writes differently."""


def cache_options(settings: CacheSettings) -> dict[str, object]:
    """Give the keyword arguments of cache-dit's DBCacheConfig or DBPruneConfig.

    `cache_type` is not among them: the class carries it, and as text it would be refused later.
    A mask that is a policy's name stays a name: `cache_dit.steps_mask` makes the list of it.
    None is left out, because it is the default wherever it is allowed.
    """
    if isinstance(settings.method, Disabled):
        return {}
    return {CACHE_SPELLINGS.get(name, name): value for name, value in set_options(settings.method)}


def calibrator_options(settings: CacheSettings) -> dict[str, object]:
    """Give the keyword arguments of cache-dit's config class of the calibrator, if there is one."""
    return {} if settings.calibrator is None else dict(set_options(settings.calibrator))


def set_options(options: msgspec.Struct) -> list[tuple[str, object]]:
    """Give the fields of a struct that are not None, with lists in place of tuples."""
    values = msgspec.structs.asdict(options).items()
    return [
        (name, list(value) if isinstance(value, tuple) else value)
        for name, value in values
        if value is not None
    ]
