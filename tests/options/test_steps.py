"""What DBCache and DBPrune share: which steps are computed, and which blocks of the others.

The pipeline's weights are noise, so that steps differ much: thresholds are wide.
"""

from __future__ import annotations

from typing import Any

import cache_dit
import pytest
from tests.options.proofs import proves
from tests.options.running import Bench
from tests.options.tiny import BLOCKS

from ditcast_runtime.settings import MASK_POLICIES, CacheSettings, DBCache, DBPrune

METHODS = (DBCache, DBPrune)
STEPS = list(range(1, 13))
ALL = tuple(range(BLOCKS))
ALWAYS = 1.0
"""A threshold that every step is below, without being measured."""

both = pytest.mark.parametrize("method", METHODS)


def settings(method: type[DBCache | DBPrune], **options: Any) -> CacheSettings:
    """Make settings that reuse all they may, after 2 steps, but for what is said."""
    usual = {
        "fn_compute_blocks": 1,
        "max_warmup_steps": 2,
        "residual_diff_threshold": ALWAYS,
    }
    return CacheSettings(method=method(**usual | options))


def of_both(*options: str) -> tuple[str, ...]:
    """Name options of both methods."""
    return tuple(
        f"cache.{name}.{option}" for name in ("db_cache", "db_prune") for option in options
    )


def saved(bench: Bench, method: type[DBCache | DBPrune], **options: Any) -> list[int]:
    """Give the steps that were reused, or of which blocks were skipped."""
    trace = bench.run(settings(method, **options))
    steps = trace.cached if method is DBCache else trace.pruned
    assert sorted([*steps, *trace.computed]) == STEPS
    return steps


@proves("cache.disabled")
def test_without_a_cache_every_step_computes_every_block(bench: Bench) -> None:
    """Also after it was on."""
    bench.run(settings(DBCache))
    trace = bench.run(CacheSettings())
    assert trace.computed == STEPS
    assert set(trace.calls) == {ALL}


@proves(*of_both("fn_compute_blocks", "bn_compute_blocks"))
@both
@pytest.mark.parametrize(("first", "last"), [(1, 0), (2, 0), (1, 2), (3, 1)])
def test_first_and_last_blocks_are_always_computed(
    bench: Bench, method: type[DBCache | DBPrune], first: int, last: int
) -> None:
    """A saved step runs the blocks at both ends that it was told to, and no others."""
    trace = bench.run(settings(method, fn_compute_blocks=first, bn_compute_blocks=last))
    ends = (*range(first), *range(BLOCKS - last, BLOCKS))
    assert trace.calls == (ALL,) * 2 + (ends,) * 10


@proves("cache.db_cache.residual_diff_threshold")
def test_a_step_is_reused_if_its_difference_is_below_the_threshold(bench: Bench) -> None:
    """Just above the difference it is, just below it is not; 0 never, 1 always and unmeasured."""
    wide = bench.run(settings(DBCache, residual_diff_threshold=0.99))
    assert wide.cached == STEPS[2:]
    difference = wide.diffs[2]
    assert difference is not None
    above, below = (
        bench.run(settings(DBCache, residual_diff_threshold=difference + change))
        for change in (1e-4, -1e-4)
    )
    assert 3 in above.cached
    assert 3 in below.computed
    assert above.diffs[2] == below.diffs[2] == difference
    assert saved(bench, DBCache, residual_diff_threshold=0) == []
    always = bench.run(settings(DBCache))
    assert always.cached == STEPS[2:]
    assert always.diffs == [None] * 12


@proves("cache.db_prune.residual_diff_threshold")
def test_a_block_is_skipped_if_its_input_has_changed_less_than_the_threshold(bench: Bench) -> None:
    """A narrow threshold skips fewer blocks than a wide one, 0 none and 1 all that may be."""
    blocks = []
    for threshold in (0, 0.05, 0.1, 0.3, ALWAYS):
        trace = bench.run(settings(DBPrune, residual_diff_threshold=threshold))
        blocks.append(sum(len(call) for call in trace.calls))
    assert blocks == sorted(blocks, reverse=True)
    assert len(set(blocks)) == len(blocks)
    assert (blocks[0], blocks[-1]) == (12 * BLOCKS, 2 * BLOCKS + 10)


@proves("cache.db_cache.max_accumulated_residual_diff_threshold")
def test_no_step_is_reused_once_the_differences_have_summed_up(bench: Bench) -> None:
    """The sum is the generation's: it does not begin anew with a computed step."""
    differences = bench.run(settings(DBCache, residual_diff_threshold=0.99)).diffs
    first, second = differences[2], differences[3]
    assert first is not None
    assert second is not None
    trace = bench.run(
        settings(
            DBCache,
            residual_diff_threshold=0.99,
            max_accumulated_residual_diff_threshold=first + second / 2,
        )
    )
    assert trace.cached == [3, 4]


@proves(*of_both("max_warmup_steps"))
@both
@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_first_steps_are_computed(
    bench: Bench, method: type[DBCache | DBPrune], count: int
) -> None:
    """As many as asked for; the very first in any case, as there is nothing to reuse."""
    assert saved(bench, method, max_warmup_steps=count) == STEPS[max(count, 1) :]


@proves(*of_both("warmup_interval"))
@both
def test_of_the_first_steps_every_nth_is_computed(
    bench: Bench, method: type[DBCache | DBPrune]
) -> None:
    """Of 6 first steps every second, or every third, is."""
    halves = saved(bench, method, max_warmup_steps=6, warmup_interval=2)
    thirds = saved(bench, method, max_warmup_steps=6, warmup_interval=3)
    assert halves == [2, 4, 6, *STEPS[6:]]
    assert thirds == [2, 3, 5, 6, *STEPS[6:]]


@proves(*of_both("max_cached_steps"))
@both
@pytest.mark.parametrize(("most", "expected"), [(0, 0), (4, 4), (-1, 10)])
def test_reused_steps_are_bounded(
    bench: Bench, method: type[DBCache | DBPrune], most: int, expected: int
) -> None:
    """After so many all others are computed; -1 is no bound."""
    assert saved(bench, method, max_cached_steps=most) == STEPS[2 : 2 + expected]


@proves(*of_both("max_continuous_cached_steps"))
@both
def test_reused_steps_in_a_row_are_bounded(bench: Bench, method: type[DBCache | DBPrune]) -> None:
    """After 3 in a row one is computed."""
    steps = saved(bench, method, max_continuous_cached_steps=3)
    assert steps == [3, 4, 5, 7, 8, 9, 11, 12]


@proves(*of_both("num_inference_steps"))
@both
def test_a_generation_has_its_own_number_of_steps(
    bench: Bench, method: type[DBCache | DBPrune]
) -> None:
    """A number in the settings does not let the cache start afresh in the middle of another."""
    assert saved(bench, method, num_inference_steps=5) == STEPS[2:]


@proves(*of_both("steps_computation_mask"))
@both
def test_a_mask_says_which_steps_are_computed(
    bench: Bench, method: type[DBCache | DBPrune]
) -> None:
    """A list overrides the warm-up, if that is longer."""
    mask = (1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1)
    expected = [step for step, computed in enumerate(mask, start=1) if not computed]
    assert saved(bench, method, steps_computation_mask=mask, max_warmup_steps=8) == expected


@proves(*of_both("steps_computation_mask: policies"))
@both
@pytest.mark.parametrize("policy", MASK_POLICIES)
@pytest.mark.parametrize("steps", [6, 28])
def test_a_policy_is_a_mask_for_any_number_of_steps(
    bench: Bench, method: type[DBCache | DBPrune], policy: str, steps: int
) -> None:
    """Each of cache-dit's words; of 28 steps, as many are computed as the contract says."""
    trace = bench.run(settings(method, steps_computation_mask=policy), steps)
    mask = cache_dit.steps_mask(mask_policy=policy, total_steps=steps)
    assert trace.computed == [step for step, computed in enumerate(mask, start=1) if computed]
    if steps == 28:
        counts = {"slow": 18, "medium": 15, "fast": 11, "ultra": 8}
        assert len(trace.computed) == counts[policy]


@proves(*of_both("steps_computation_policy"))
@both
def test_at_a_zero_of_the_mask_either_the_difference_decides_or_nothing(
    bench: Bench, method: type[DBCache | DBPrune]
) -> None:
    """With a threshold that no step is below, `dynamic` reuses none and `static` all."""
    mask = (1, 0) * 6
    never = {"steps_computation_mask": mask, "residual_diff_threshold": 1e-9}
    assert saved(bench, method, **never) == []
    static = saved(bench, method, **never, steps_computation_policy="static")
    assert static == STEPS[1::2]


@proves(*of_both("force_refresh_step_hint", "force_refresh_step_policy"))
@both
@pytest.mark.parametrize(
    ("hint", "policy", "computed"),
    [
        (5, "once", [1, 2, 6, 7]),
        (5, "repeat", [1, 2, 6, 7, 11, 12]),
        (4, "repeat", [1, 2, 5, 6, 9, 10]),
    ],
)
def test_the_cache_starts_afresh_where_it_is_told_to(
    bench: Bench, method: type[DBCache | DBPrune], hint: int, policy: str, computed: list[int]
) -> None:
    """After so many calls its warm-up begins again: once, or each time."""
    steps = saved(bench, method, force_refresh_step_hint=hint, force_refresh_step_policy=policy)
    assert sorted({*STEPS} - {*steps}) == computed


@proves(*of_both("force_refresh_step_hint"))
@both
def test_calls_count_for_a_fresh_start_not_steps(
    bench: Bench, method: type[DBCache | DBPrune]
) -> None:
    """With two passes a step, 8 calls are 4 steps, of both passes."""
    trace = bench.run(settings(method, force_refresh_step_hint=8), passes=2)
    assert trace.computed == trace.cfg_computed == [1, 2, 5, 6]


@proves(*of_both("enable_separate_cfg"))
@both
def test_each_of_two_passes_has_a_cache_of_its_own(
    bench: Bench, method: type[DBCache | DBPrune]
) -> None:
    """A warm-up of 2 steps is 2 steps of each pass, of one as of two."""
    one = bench.run(settings(method))
    two = bench.run(settings(method), passes=2)
    assert one.computed == two.computed == two.cfg_computed == [1, 2]
    assert one.cfg_computed == one.cfg_cached == []
    assert len(two.calls) == 2 * len(one.calls)


def differences(bench: Bench, **options: Any) -> tuple[list[Any], list[Any]]:
    """Give the differences of both passes, where steps are reused."""
    trace = bench.run(settings(DBCache, residual_diff_threshold=0.99, **options), passes=2)
    assert trace.cached == trace.cfg_cached == STEPS[2:]
    return trace.diffs[2:], [each.cfg_residual_diff for each in trace.decisions[2:]]


@proves("cache.db_cache.cfg_diff_compute_separate")
def test_the_second_pass_is_judged_by_its_own_difference_or_by_the_firsts(bench: Bench) -> None:
    """Separately the two differ in every step; otherwise one is the other."""
    own, of_second = differences(bench)
    shared, of_shared = differences(bench, cfg_diff_compute_separate=False)
    assert all(one != two for one, two in zip(own, of_second, strict=True))
    assert shared == of_shared == own


@proves("cache.db_cache.cfg_compute_first")
def test_the_pass_without_the_prompt_may_come_first(bench: Bench) -> None:
    """Which pass is which turns round: the first call of a step now counts as that pass."""
    of_first, of_second = differences(bench)
    turned, of_turned = differences(bench, cfg_compute_first=True, cfg_diff_compute_separate=False)
    assert of_turned == of_first
    assert turned == of_second
