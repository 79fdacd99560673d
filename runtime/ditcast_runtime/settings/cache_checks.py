"""What cache-dit would assert, crash on or silently get wrong, refused before a rank is touched.

Each rule stands beside what happens inside cache-dit without it. Paths are those of the request
(`cache.db_cache.fn_compute_blocks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import assert_never

from ditcast_runtime.settings.cache import (
    DMD,
    CacheSettings,
    DBCache,
    DBPrune,
    Disabled,
    FoCa,
    TaylorSeer,
)
from ditcast_runtime.settings.problems import INT32_MAX, Findings, Problem, one_per_field

MASK_POLICIES = ("slow", "medium", "fast", "ultra")
STEPS_COMPUTATION_POLICIES = ("dynamic", "static")
FORCE_REFRESH_STEP_POLICIES = ("once", "repeat")
CALIBRATOR_CACHE_TYPES = ("residual", "hidden_states")
DMD_SVD_PRECISIONS = ("low", "medium", "high")

MIN_DMD_HISTORY = 4
"""Snapshots before DMD's fit engages."""

MAX_TAYLORSEER_ORDER = 4
"""Each order keeps one more tensor a block, and steps ** order soon leaves what a device holds."""

_FEWEST_STEPS_OF_A_POLICY = 8
_SHORT_POLICIES = (4, 6)


def check_cache(
    settings: CacheSettings,
    *,
    prefix: str = "cache",
    num_blocks: Mapping[str, int] | None = None,
    num_inference_steps: int | None = None,
    context_parallel: bool = False,
    two_passes: bool = False,
) -> tuple[Problem, ...]:
    """Find every value that cache-dit could not run with, all at once.

    Args:
        settings: What to check.
        prefix: Path of the settings in the request.
        num_blocks: Blocks of each transformer or block list by name. None: not known yet.
        num_inference_steps: The request's number of steps. None: not known yet.
        context_parallel: Whether the ranks split the sequence (Ulysses or ring).
        two_passes: Whether the request makes two transformer calls a step.
    """
    method = settings.method
    match method:
        case Disabled():
            problems = _check_disabled(settings, prefix)
        case DBCache():
            problems = _check_db_cache(
                method, f"{prefix}.db_cache", num_blocks, num_inference_steps
            )
        case DBPrune():
            findings = Findings(f"{prefix}.db_prune")
            _check_steps(method, findings, num_blocks, num_inference_steps)
            _check_prune(method, findings, num_blocks, context_parallel=context_parallel)
            problems = findings.problems
        case _:
            assert_never(method)
    if two_passes and not isinstance(method, Disabled):
        problems = [*problems, *_check_refresh(method, f"{prefix}.{method.__struct_config__.tag}")]
    return one_per_field([*problems, *_check_calibrator(settings, prefix)])


def _check_disabled(settings: CacheSettings, prefix: str) -> list[Problem]:
    """Refuse a calibrator that could never be asked."""
    if settings.calibrator is None:
        return []
    return [
        Problem(f"{prefix}.disabled", "a calibrator needs db_cache or db_prune to forecast for")
    ]


def _check_db_cache(
    options: DBCache, path: str, num_blocks: Mapping[str, int] | None, steps: int | None
) -> list[Problem]:
    """Check whole-step caching."""
    findings = Findings(path)
    _check_steps(options, findings, num_blocks, steps)
    first, last = options.fn_compute_blocks, options.bn_compute_blocks
    name, blocks = _smallest(num_blocks)
    if blocks is not None and 0 < first <= blocks and 0 < last <= blocks < first + last:
        # cache-dit checks each of the two alone, and would run the blocks in both twice.
        findings.refuse(
            "bn_compute_blocks",
            f"fn_compute_blocks {first} + bn_compute_blocks {last} = {first + last}, "
            f"but {name} has {blocks} blocks",
        )
    return findings.problems


def _check_steps(
    options: DBCache | DBPrune,
    findings: Findings,
    num_blocks: Mapping[str, int] | None,
    steps: int | None,
) -> None:
    """Check what both methods share."""
    _check_blocks(options, findings, num_blocks)
    findings.real("residual_diff_threshold", options.residual_diff_threshold)
    # 0 would read as "always compute" and means "no bound".
    findings.real(
        "max_accumulated_residual_diff_threshold",
        options.max_accumulated_residual_diff_threshold,
        above=0,
    )
    findings.whole("max_warmup_steps", options.max_warmup_steps, 0)
    # 0 is a step of range() and raises; a negative one silently drops the warm-up.
    findings.whole("warmup_interval", options.warmup_interval, 1)
    findings.whole("max_cached_steps", options.max_cached_steps, -1)
    findings.whole("max_continuous_cached_steps", options.max_continuous_cached_steps, -1)
    findings.whole("num_inference_steps", options.num_inference_steps, 1)
    findings.whole("force_refresh_step_hint", options.force_refresh_step_hint, 1)
    # An unknown word silently counts as "dynamic" or "repeat".
    findings.choice(
        "steps_computation_policy", options.steps_computation_policy, STEPS_COMPUTATION_POLICIES
    )
    findings.choice(
        "force_refresh_step_policy", options.force_refresh_step_policy, FORCE_REFRESH_STEP_POLICIES
    )
    _check_mask(options, findings, options.num_inference_steps if steps is None else steps)
    _check_separate_cfg(options, findings)


def _check_blocks(
    options: DBCache | DBPrune, findings: Findings, num_blocks: Mapping[str, int] | None
) -> None:
    """Check the blocks that are always computed: too many is an assertion in the first forward."""
    name, blocks = _smallest(num_blocks)
    values = (
        ("fn_compute_blocks", options.fn_compute_blocks, 1),
        ("bn_compute_blocks", options.bn_compute_blocks, 0),
    )
    for field, value, low in values:
        if findings.whole(field, value, low) and blocks is not None and value > blocks:
            findings.refuse(field, f"{value} is out of range: {name} has {blocks} blocks")


def _check_separate_cfg(options: DBCache | DBPrune, findings: Findings) -> None:
    """Refuse what the first request with two passes a step would assert.

    Whatever `enable_separate_cfg` says: it is resolved anew for each request.
    """
    if options.cfg_compute_first and options.cfg_diff_compute_separate:
        findings.refuse("cfg_compute_first", "it needs cfg_diff_compute_separate to be false")


def _check_refresh(options: DBCache | DBPrune, path: str) -> Iterator[Problem]:
    """Refuse a fresh start between the two passes of a step: each would be taken for the other."""
    hint = options.force_refresh_step_hint
    if hint is not None and hint % 2:
        reason = f"{hint} is odd, and this request makes two transformer calls a step"
        yield Problem(f"{path}.force_refresh_step_hint", reason)


def _check_mask(options: DBCache | DBPrune, findings: Findings, steps: int | None) -> None:
    """Check the mask of steps, be it a list or a policy's name."""
    mask = options.steps_computation_mask
    if mask is None:
        return
    if isinstance(mask, str):
        _check_mask_policy(mask, findings, steps)
    else:
        _check_mask_values(
            mask, findings, steps, static=options.steps_computation_policy == "static"
        )


def _check_mask_policy(policy: str, findings: Findings, steps: int | None) -> None:
    """Refuse a policy that cache-dit cannot make a mask of."""
    field = "steps_computation_mask"
    if not findings.choice(field, policy, MASK_POLICIES) or steps is None:
        return
    if steps < _FEWEST_STEPS_OF_A_POLICY and steps not in _SHORT_POLICIES:
        findings.refuse(field, f"{policy!r} knows 4, 6 and from 8 steps, but there are {steps}")


def _check_mask_values(
    mask: tuple[int, ...], findings: Findings, steps: int | None, *, static: bool
) -> None:
    """Refuse a list that leaves steps open: cache-dit takes any value but 1 for "reuse"."""
    field = "steps_computation_mask"
    wrong = next((index for index, value in enumerate(mask) if value not in (0, 1)), None)
    if wrong is not None:
        findings.refuse(field, f"entry {wrong} is {mask[wrong]!r}: each must be 0 or 1")
    if not mask:
        findings.refuse(field, "it is empty: it needs one entry for each step")
    elif steps is not None and len(mask) != steps:
        findings.refuse(field, f"it has {len(mask)} entries, but there are {steps} steps")
    if static and mask and mask[0] == 0:
        # The first step would be taken from a buffer that nothing has filled yet.
        findings.refuse(field, "entry 0 must be 1 with the static policy: nothing is cached yet")


def _check_prune(
    options: DBPrune,
    findings: Findings,
    num_blocks: Mapping[str, int] | None,
    *,
    context_parallel: bool,
) -> None:
    """Check what only block pruning has, and what it lacks."""
    if context_parallel:
        findings.refuse(
            "", "db_prune does not work with context parallelism: use db_cache", "unsupported"
        )
    if options.max_accumulated_residual_diff_threshold is not None:
        # Pruning never adds to the sum, so the bound would silently be none.
        findings.refuse(
            "max_accumulated_residual_diff_threshold",
            "db_prune keeps no sum of differences: leave it unset",
            "unsupported",
        )
    if not options.cfg_diff_compute_separate:
        # It would compare a list of the blocks' differences with a number.
        findings.refuse("cfg_diff_compute_separate", "db_prune needs it to be true", "unsupported")
    findings.real("max_dynamic_prune_threshold", options.max_dynamic_prune_threshold, above=0)
    findings.real(
        "dynamic_prune_threshold_relax_ratio", options.dynamic_prune_threshold_relax_ratio, above=0
    )
    blocks = max(num_blocks.values()) if num_blocks else INT32_MAX + 1
    for index in options.non_prune_block_ids:
        if not findings.whole("non_prune_block_ids", index, 0, blocks - 1):
            break


def _check_calibrator(settings: CacheSettings, prefix: str) -> list[Problem]:
    """Check the calibrator's own options."""
    calibrator = settings.calibrator
    match calibrator:
        case None:
            return []
        case TaylorSeer():
            findings = Findings(f"{prefix}.taylor_seer")
            findings.whole("taylorseer_order", calibrator.taylorseer_order, 1, MAX_TAYLORSEER_ORDER)
        case DMD():
            findings = Findings(f"{prefix}.dmd")
            _check_dmd(calibrator, findings)
        case FoCa():
            findings = Findings(f"{prefix}.foca")
        case _:
            assert_never(calibrator)
    # Any word but "residual" silently counts as "hidden_states".
    findings.choice(
        "calibrator_cache_type", calibrator.calibrator_cache_type, CALIBRATOR_CACHE_TYPES
    )
    if isinstance(settings.method, DBPrune) and _forecasts_text_states(calibrator):
        findings.refuse(
            "calibrator_cache_type",
            "db_prune keeps residuals of the text stream where hidden states are meant: use "
            "residual, or set enable_encoder_calibrator to false",
            "unsupported",
        )
    return findings.problems


def _check_dmd(calibrator: DMD, findings: Findings) -> None:
    """Check the fit's options: what is wrong there is swallowed, and the last value reused."""
    history = calibrator.dmd_history
    if findings.whole("dmd_history", history, 1) and history < MIN_DMD_HISTORY:
        findings.refuse(
            "dmd_history",
            f"{history} is out of range: the fit needs {MIN_DMD_HISTORY} snapshots, and with fewer "
            "a Taylor expansion stands in for it",
        )
    findings.whole("dmd_rank", calibrator.dmd_rank, 0)
    findings.real("dmd_ridge", calibrator.dmd_ridge)
    findings.choice("dmd_svd_precision", calibrator.dmd_svd_precision, DMD_SVD_PRECISIONS)


def _forecasts_text_states(calibrator: TaylorSeer | DMD | FoCa) -> bool:
    """Tell whether hidden states of the text stream are forecast."""
    return (
        calibrator.enable_encoder_calibrator and calibrator.calibrator_cache_type == "hidden_states"
    )


def _smallest(num_blocks: Mapping[str, int] | None) -> tuple[str, int | None]:
    """Give the transformer with the fewest blocks, which bounds the settings of all."""
    if not num_blocks:
        return "", None
    return min(num_blocks.items(), key=lambda item: item[1])
