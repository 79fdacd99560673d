"""What only DBPrune has: which blocks are skipped, and from which difference on."""

from __future__ import annotations

from typing import Any

from tests.options.proofs import proves
from tests.options.running import Bench, Trace
from tests.options.test_steps import settings
from tests.options.tiny import BLOCKS

from ditcast_runtime.settings import CacheSettings, DBPrune, TaylorSeer

THRESHOLD = 0.05


def run(bench: Bench, **options: Any) -> Trace:
    """Prune with a threshold between the differences that there are."""
    return bench.run(settings(DBPrune, **{"residual_diff_threshold": THRESHOLD} | options))


def skipped(trace: Trace) -> int:
    """Count the blocks that were skipped."""
    return sum(BLOCKS - len(call) for call in trace.calls)


@proves("cache.db_prune")
def test_single_blocks_of_a_step_are_skipped(bench: Bench) -> None:
    """Some steps skip some blocks and run others, and the decisions say which steps."""
    trace = run(bench, enable_dynamic_prune_threshold=True)
    assert {len(call) for call in trace.calls} - {1, BLOCKS}
    steps = [step for step, call in enumerate(trace.calls, start=1) if len(call) < BLOCKS]
    assert trace.pruned == steps


@proves("cache.db_prune.non_prune_block_ids")
def test_chosen_blocks_are_never_skipped(bench: Bench) -> None:
    """Each step runs them, whatever the threshold."""
    trace = run(bench, residual_diff_threshold=1.0, non_prune_block_ids=(2, 4))
    assert set(trace.calls[2:]) == {(0, 2, 4)}


@proves(
    "cache.db_prune.enable_dynamic_prune_threshold",
    "cache.db_prune.dynamic_prune_threshold_relax_ratio",
    "cache.db_prune.max_dynamic_prune_threshold",
)
def test_a_moving_threshold_skips_more_within_its_bound(bench: Bench) -> None:
    """Following the differences skips more; a larger factor even more; a low bound, none more."""
    still = skipped(run(bench))
    moving = {"enable_dynamic_prune_threshold": True, "max_dynamic_prune_threshold": 10.0}
    follows = skipped(run(bench, **moving))
    relaxed = skipped(run(bench, **moving, dynamic_prune_threshold_relax_ratio=3.0))
    bounded = skipped(run(bench, **moving | {"max_dynamic_prune_threshold": THRESHOLD}))
    assert bounded == still < follows < relaxed


@proves("cache.db_prune.force_reduce_calibrator_vram")
def test_differences_may_be_taken_on_every_fourth_channel(bench: Bench) -> None:
    """What is kept to compare with shrinks to a quarter; only a calibrator asks for it."""
    sizes = []
    for reduce in (False, True):
        method = settings(DBPrune, force_reduce_calibrator_vram=reduce).method
        trace = bench.run(CacheSettings(method=method, calibrator=TaylorSeer()))
        kept = [
            value for name, value in trace.buffers.items() if name.endswith("_Fn_original_buffer")
        ]
        assert len(kept) == BLOCKS - 1
        sizes.append(sum(value.numel() for value in kept))
    assert sizes[0] == 4 * sizes[1]
