"""What the calibrators make of a reused step: each option changes the picture, and nothing else.

Decisions do not depend on them here, so that a difference comes from the forecast alone.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tests.options.proofs import proves
from tests.options.running import Bench
from tests.options.test_steps import settings

from ditcast_runtime.settings import (
    DMD,
    CacheSettings,
    Calibrator,
    DBCache,
    DBPrune,
    FoCa,
    TaylorSeer,
)

MASK = (1,) * 8 + (0, 1, 0, 1)
"""Enough computed steps for each kind of forecast to engage."""

NAMES = {TaylorSeer: "taylor_seer", DMD: "dmd", FoCa: "foca"}


def picture(
    bench: Bench, calibrator: Calibrator | None, method: type[DBCache | DBPrune] = DBCache
) -> torch.Tensor:
    """Give the latents of a generation whose 9th and 11th steps are forecast."""
    options = {"steps_computation_mask": MASK, "steps_computation_policy": "static"}
    # The text stream shows in the picture only through blocks behind those that are reused.
    made = settings(method, bn_compute_blocks=1, **options).method
    trace = bench.run(CacheSettings(method=made, calibrator=calibrator))
    assert (trace.cached or trace.pruned) == [9, 11]
    assert torch.isfinite(trace.output).all()
    return trace.output


def expect_all_different(pictures: list[torch.Tensor]) -> None:
    """Hold each picture to differ from each other."""
    for one, two in itertools.combinations(pictures, 2):
        assert not torch.equal(one, two)


@proves("cache.taylor_seer", "cache.dmd", "cache.foca")
@pytest.mark.parametrize("method", [DBCache, DBPrune])
def test_each_calibrator_forecasts_in_its_own_way(
    bench: Bench, method: type[DBCache | DBPrune]
) -> None:
    """Three forecasts and plain reuse: four pictures, under both methods; each can be repeated."""
    kinds: list[Calibrator | None] = [None, TaylorSeer(), DMD(), FoCa()]
    pictures = [picture(bench, calibrator, method) for calibrator in kinds]
    expect_all_different(pictures)
    for calibrator, made in zip(kinds, pictures, strict=True):
        assert torch.equal(picture(bench, calibrator, method), made)


@proves(
    *(
        f"cache.{name}.{option}"
        for name in NAMES.values()
        for option in ("enable_encoder_calibrator", "calibrator_cache_type")
    )
)
@pytest.mark.parametrize("kind", NAMES)
def test_what_is_forecast_changes_the_picture(
    bench: Bench, kind: type[TaylorSeer | DMD | FoCa]
) -> None:
    """The text stream too or not, residuals or states: four pictures."""
    expect_all_different(
        [
            picture(bench, kind(enable_encoder_calibrator=text, calibrator_cache_type=what))
            for text in (True, False)
            for what in ("residual", "hidden_states")
        ]
    )


@proves("cache.taylor_seer.taylorseer_order")
def test_each_order_of_the_expansion_makes_another_picture(bench: Bench) -> None:
    """Orders 1 to 4."""
    expect_all_different([picture(bench, TaylorSeer(taylorseer_order=n)) for n in (1, 2, 3, 4)])


@proves("cache.dmd.dmd_history", "cache.dmd.dmd_rank", "cache.dmd.dmd_ridge")
def test_the_options_of_the_fit_change_the_picture(bench: Bench) -> None:
    """A longer memory, a lower rank and a stiffer inverse."""
    expect_all_different(
        [
            picture(bench, DMD()),
            picture(bench, DMD(dmd_history=4)),
            picture(bench, DMD(dmd_rank=1)),
            picture(bench, DMD(dmd_ridge=10.0)),
        ]
    )


@proves("cache.dmd.dmd_svd_precision")
def test_the_precision_chooses_the_decomposition(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`low` is randomised, yet can be repeated; the exact driver of `high` is CUDA's alone."""
    randomised = []
    original = torch.svd_lowrank

    def note(*args: Any, **kwargs: Any) -> Any:
        randomised.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "svd_lowrank", note)
    medium = picture(bench, DMD(dmd_svd_precision="medium"))
    assert torch.equal(medium, picture(bench, DMD(dmd_svd_precision="high")))
    assert randomised == []
    low = picture(bench, DMD(dmd_svd_precision="low"))
    assert randomised
    assert torch.equal(low, picture(bench, DMD(dmd_svd_precision="low")))
