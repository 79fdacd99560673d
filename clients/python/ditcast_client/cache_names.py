"""Cache settings in a few words, so that a dozen of them can be told apart in a table."""

from __future__ import annotations

from ditcast.v1.acceleration_pb2 import CacheConfig, DBCache, DBPrune, StepsComputationMaskPolicy

_METHODS = {"db_cache": "DBCache", "db_prune": "DBPrune"}
_CALIBRATORS = {"taylor_seer": "TaylorSeer", "dmd": "DMD", "foca": "FoCa"}


def cache_name(cache: CacheConfig) -> str:
    """Say what matters most of settings with every default filled in."""
    method = cache.WhichOneof("method")
    if method not in _METHODS:
        return "no cache"
    parts = [_METHODS[method], *_options(getattr(cache, method))]
    calibrator = cache.WhichOneof("calibrator")
    if calibrator == "taylor_seer":
        parts.append(f"TaylorSeer {cache.taylor_seer.taylorseer_order}")
    elif calibrator is not None:
        parts.append(_CALIBRATORS[calibrator])
    return ", ".join(parts)


def _options(options: DBCache | DBPrune) -> list[str]:
    blocks = f"F{options.fn_compute_blocks}B{options.bn_compute_blocks}"
    warm_up = f"warm-up {options.max_warmup_steps}"
    if options.warmup_interval > 1:
        warm_up += f" by {options.warmup_interval}"
    found = [blocks, f"threshold {options.residual_diff_threshold:g}", warm_up]
    if options.max_continuous_cached_steps >= 0:
        found.append(f"{options.max_continuous_cached_steps} in a row")
    if options.HasField("steps_computation_mask_policy"):
        policy = StepsComputationMaskPolicy.Name(options.steps_computation_mask_policy)
        found.append(f"mask {policy.removeprefix('STEPS_COMPUTATION_MASK_POLICY_').lower()}")
    elif options.steps_computation_mask:
        found.append(f"{sum(options.steps_computation_mask)} steps by mask")
    return found
