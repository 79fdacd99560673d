"""The settings that are tried where a caller names none: a dozen, from careful to bold."""

from __future__ import annotations

from ditcast_runtime.settings import CacheSettings, DBCache, TaylorSeer

_RUNGS = ((0.08, 2), (0.12, 4), (0.24, 8), (0.4, 16))
"""Thresholds, and most steps reused in a row. Each limits the other's harm: what no threshold
holds back on a small model, the row does, and the other way round on a large one."""

_LONG_PART, _SHORT_PART = 6, 25
"""The warm-up takes the one or the other part of all steps: 8 or 2 of 50."""

_INTERVAL_FROM = 4
"""Warm-up steps from which every second one may be reused."""


def usual_candidates(steps: int) -> tuple[CacheSettings, ...]:
    """Give the settings to try for so many steps; with few steps some are the same, and left out.

    Each rung with a long and a short warm-up, both with TaylorSeer, and with the long one without.
    """
    long, short = max(1, steps // _LONG_PART), max(1, steps // _SHORT_PART)
    families = ((long, True), (short, True), (long, False))
    found = [
        _candidate(threshold, row, warm_up, forecast=forecast)
        for warm_up, forecast in families
        for threshold, row in _RUNGS
    ]
    return tuple(dict.fromkeys(found))


def _candidate(threshold: float, row: int, warm_up: int, *, forecast: bool) -> CacheSettings:
    method = DBCache(
        fn_compute_blocks=1,
        residual_diff_threshold=threshold,
        max_continuous_cached_steps=row,
        max_warmup_steps=warm_up,
        warmup_interval=2 if warm_up >= _INTERVAL_FROM else 1,
    )
    # Without the text stream, as cache-dit's files mean where they leave it out.
    calibrator = TaylorSeer(enable_encoder_calibrator=False) if forecast else None
    return CacheSettings(method=method, calibrator=calibrator)
