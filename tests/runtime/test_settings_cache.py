"""What `check_cache` refuses, under which path, and what it lets pass."""

from __future__ import annotations

import math

import pytest

from ditcast_runtime.settings import (
    DMD,
    CacheSettings,
    Calibrator,
    DBCache,
    DBPrune,
    Disabled,
    FoCa,
    TaylorSeer,
    check_cache,
)

BLOCKS = {"transformer": 6, "transformer_2": 9}
TOO_LARGE = 2**31


def found(settings: CacheSettings, *, context_parallel: bool = False) -> dict[str, str]:
    """Give the paths and reasons of what is wrong on a model of 6 and 9 blocks at 20 steps."""
    problems = check_cache(
        settings, num_blocks=BLOCKS, num_inference_steps=20, context_parallel=context_parallel
    )
    assert len({problem.field for problem in problems}) == len(problems), "one a field"
    return {problem.field: problem.reason for problem in problems}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fn_compute_blocks", 0),
        ("fn_compute_blocks", -1),
        ("fn_compute_blocks", 7),
        ("fn_compute_blocks", TOO_LARGE),
        ("bn_compute_blocks", -1),
        ("bn_compute_blocks", 7),
        ("residual_diff_threshold", -0.01),
        ("residual_diff_threshold", math.nan),
        ("residual_diff_threshold", math.inf),
        ("max_accumulated_residual_diff_threshold", 0.0),
        ("max_accumulated_residual_diff_threshold", -1.0),
        ("max_accumulated_residual_diff_threshold", math.nan),
        ("max_warmup_steps", -1),
        ("max_warmup_steps", TOO_LARGE),
        ("warmup_interval", 0),
        ("warmup_interval", -1),
        ("max_cached_steps", -2),
        ("max_continuous_cached_steps", -2),
        ("num_inference_steps", 0),
        ("steps_computation_mask", ()),
        ("steps_computation_mask", (1,) * 19),
        ("steps_computation_mask", (1,) * 21),
        ("steps_computation_mask", (1,) * 19 + (2,)),
        ("steps_computation_mask", (1,) * 19 + (-1,)),
        ("steps_computation_mask", "quick"),
        ("steps_computation_policy", "Static"),
        ("force_refresh_step_hint", 0),
        ("force_refresh_step_hint", -3),
        ("force_refresh_step_policy", "twice"),
        ("cfg_compute_first", True),
    ],
)
@pytest.mark.parametrize("method", [DBCache, DBPrune])
def test_values_out_of_range(
    method: type[DBCache | DBPrune], name: str, value: float | str | tuple[int, ...]
) -> None:
    """A value that cache-dit cannot run with is refused under its own path, by both methods."""
    start = {"fn_compute_blocks": 1} | {name: value}
    settings = CacheSettings(method=method(**start))  # type: ignore[arg-type]
    kind = "db_cache" if method is DBCache else "db_prune"
    assert list(found(settings)) == [f"cache.{kind}.{name}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_dynamic_prune_threshold", 0.0),
        ("max_dynamic_prune_threshold", math.inf),
        ("dynamic_prune_threshold_relax_ratio", 0.0),
        ("dynamic_prune_threshold_relax_ratio", math.nan),
        ("non_prune_block_ids", (-1,)),
        ("non_prune_block_ids", (0, 9)),
    ],
)
def test_values_of_pruning_out_of_range(name: str, value: float | tuple[int, ...]) -> None:
    """Pruning's own options are refused under their own path; blocks count up to the last."""
    settings = CacheSettings(method=DBPrune(fn_compute_blocks=1, **{name: value}))  # type: ignore[arg-type]
    assert list(found(settings)) == [f"cache.db_prune.{name}"]


@pytest.mark.parametrize(
    "method",
    [
        Disabled(),
        DBCache(fn_compute_blocks=6),
        DBCache(fn_compute_blocks=1, bn_compute_blocks=5),
        DBCache(fn_compute_blocks=1, residual_diff_threshold=0.0),
        DBCache(fn_compute_blocks=1, residual_diff_threshold=1e9),
        DBCache(fn_compute_blocks=1, residual_diff_threshold=1),
        DBCache(fn_compute_blocks=1, max_warmup_steps=0, max_cached_steps=0),
        DBCache(fn_compute_blocks=1, cfg_compute_first=True, cfg_diff_compute_separate=False),
        DBCache(fn_compute_blocks=1, steps_computation_mask=(0,) * 20),
        DBCache(fn_compute_blocks=1, steps_computation_mask="ultra"),
        DBCache(fn_compute_blocks=1, num_inference_steps=28),
        DBCache(fn_compute_blocks=1, force_refresh_step_hint=1, force_refresh_step_policy="repeat"),
        DBPrune(fn_compute_blocks=6, bn_compute_blocks=6),
        DBPrune(fn_compute_blocks=1, non_prune_block_ids=(0, 8)),
    ],
)
def test_values_at_the_ends_pass(method: Disabled | DBCache | DBPrune) -> None:
    """What cache-dit can run is not refused, up to the very ends of the ranges."""
    assert found(CacheSettings(method=method)) == {}


def test_reasons_name_the_model() -> None:
    """The smallest transformer and its number of blocks stand in the reason."""
    reasons = found(CacheSettings(method=DBCache()))
    assert reasons == {
        "cache.db_cache.fn_compute_blocks": "8 is out of range: transformer has 6 blocks"
    }


def test_blocks_that_overlap() -> None:
    """First and last blocks together may not outnumber the blocks: some would run twice."""
    reasons = found(CacheSettings(method=DBCache(fn_compute_blocks=4, bn_compute_blocks=3)))
    assert reasons == {
        "cache.db_cache.bn_compute_blocks": (
            "fn_compute_blocks 4 + bn_compute_blocks 3 = 7, but transformer has 6 blocks"
        )
    }


def test_the_first_step_of_a_static_mask() -> None:
    """A static mask that reuses the first step has nothing to reuse yet."""
    mask = (0,) + (1,) * 19
    method = DBCache(
        fn_compute_blocks=1, steps_computation_mask=mask, steps_computation_policy="static"
    )
    assert list(found(CacheSettings(method=method))) == ["cache.db_cache.steps_computation_mask"]


def test_a_mask_is_held_against_its_own_number_of_steps() -> None:
    """Without a request, the number of steps beside a mask decides its length."""
    method = DBCache(steps_computation_mask=(1, 0), num_inference_steps=3)
    problems = check_cache(CacheSettings(method=method))
    assert [problem.field for problem in problems] == ["cache.db_cache.steps_computation_mask"]
    assert not check_cache(CacheSettings(method=method), num_inference_steps=2)
    assert not check_cache(CacheSettings(method=DBCache(steps_computation_mask=(1, 0))))


@pytest.mark.parametrize(
    ("calibrator", "field"),
    [
        (TaylorSeer(taylorseer_order=0), "taylor_seer.taylorseer_order"),
        (TaylorSeer(taylorseer_order=-1), "taylor_seer.taylorseer_order"),
        (TaylorSeer(taylorseer_order=5), "taylor_seer.taylorseer_order"),
        (TaylorSeer(calibrator_cache_type="Residual"), "taylor_seer.calibrator_cache_type"),
        (DMD(dmd_history=3), "dmd.dmd_history"),
        (DMD(dmd_history=-1), "dmd.dmd_history"),
        (DMD(dmd_rank=-1), "dmd.dmd_rank"),
        (DMD(dmd_ridge=-1e-9), "dmd.dmd_ridge"),
        (DMD(dmd_ridge=math.nan), "dmd.dmd_ridge"),
        (DMD(dmd_svd_precision="exact"), "dmd.dmd_svd_precision"),
        (DMD(calibrator_cache_type=""), "dmd.calibrator_cache_type"),
        (FoCa(calibrator_cache_type="states"), "foca.calibrator_cache_type"),
    ],
)
def test_calibrators_out_of_range(calibrator: Calibrator, field: str) -> None:
    """A calibrator's option that would crash or silently do something else is refused."""
    settings = CacheSettings(method=DBCache(fn_compute_blocks=1), calibrator=calibrator)
    assert list(found(settings)) == [f"cache.{field}"]


@pytest.mark.parametrize(
    "calibrator",
    [TaylorSeer(), TaylorSeer(taylorseer_order=4), DMD(dmd_history=4, dmd_ridge=0.0), FoCa()],
)
@pytest.mark.parametrize("method", [DBCache(fn_compute_blocks=1), DBPrune(fn_compute_blocks=1)])
def test_calibrators_pass(method: DBCache | DBPrune, calibrator: Calibrator) -> None:
    """Every calibrator goes with both methods."""
    assert found(CacheSettings(method=method, calibrator=calibrator)) == {}


def test_a_calibrator_needs_a_method() -> None:
    """A calibrator without caching would never be asked."""
    settings = CacheSettings(method=Disabled(), calibrator=FoCa())
    assert list(found(settings)) == ["cache.disabled"]


@pytest.mark.parametrize(
    ("method", "calibrator", "context_parallel", "field"),
    [
        (DBPrune(fn_compute_blocks=1), None, True, "cache.db_prune"),
        (
            DBPrune(fn_compute_blocks=1, cfg_diff_compute_separate=False),
            None,
            False,
            "cache.db_prune.cfg_diff_compute_separate",
        ),
        (
            DBPrune(fn_compute_blocks=1, max_accumulated_residual_diff_threshold=1.0),
            None,
            False,
            "cache.db_prune.max_accumulated_residual_diff_threshold",
        ),
        (
            DBPrune(fn_compute_blocks=1),
            TaylorSeer(calibrator_cache_type="hidden_states"),
            False,
            "cache.taylor_seer.calibrator_cache_type",
        ),
    ],
)
def test_what_pruning_lacks(
    method: DBPrune, calibrator: Calibrator | None, *, context_parallel: bool, field: str
) -> None:
    """A missing feature is told from a wrong value, so that the status can be told too."""
    problems = check_cache(
        CacheSettings(method=method, calibrator=calibrator), context_parallel=context_parallel
    )
    assert [(problem.field, problem.kind) for problem in problems] == [(field, "unsupported")]


def test_everything_at_once_under_the_given_prefix() -> None:
    """All problems come together, each below the prefix that the caller gives."""
    settings = CacheSettings(
        method=DBCache(fn_compute_blocks=0, warmup_interval=0, residual_diff_threshold=-1.0),
        calibrator=DMD(dmd_history=0, dmd_rank=-1),
    )
    problems = check_cache(settings, prefix="configuration.cache")
    assert {problem.field for problem in problems} == {
        "configuration.cache.db_cache.fn_compute_blocks",
        "configuration.cache.db_cache.warmup_interval",
        "configuration.cache.db_cache.residual_diff_threshold",
        "configuration.cache.dmd.dmd_history",
        "configuration.cache.dmd.dmd_rank",
    }


def test_messages_are_short_whatever_was_sent() -> None:
    """A value of any length leaves a message that fits into the details of a status."""
    method = DBCache(steps_computation_policy="x" * 10**6, steps_computation_mask="y" * 10**6)
    problems = check_cache(CacheSettings(method=method))
    assert len(problems) == 2
    assert all(len(problem.reason) < 300 for problem in problems)
