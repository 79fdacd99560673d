"""What follows from comparisons: figures, the Pareto front, the recommended one, the usual ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ditcast_runtime.settings import (
    CacheSettings,
    DBCache,
    DBPrune,
    TaylorSeer,
    check_cache,
    load_acceleration,
)
from ditcast_service.translate.tuning import cache_dit_yaml
from ditcast_service.tuning.candidates import usual_candidates
from ditcast_service.tuning.figures import (
    Comparison,
    Figures,
    figures,
    is_hopeless,
    pareto_front,
    recommended,
)

REFERENCE = Path(__file__).parents[1] / "data" / "reference_cache_dit_config.yaml"


def comparison(psnr: float, *, ssim: float = 0.9, seconds: float = 1.0) -> Comparison:
    """Compare one picture of candidate 3, which takes 4 s without a cache."""
    return Comparison(
        candidate=3,
        prompt=0,
        psnr=psnr,
        ssim=ssim,
        cached_steps=5,
        total_steps=8,
        seconds=seconds,
        uncached_seconds=4.0,
    )


def summed(candidate: int, psnr: float, time_ratio: float, *, dropped: bool = False) -> Figures:
    """Give figures of a candidate."""
    return Figures(
        candidate=candidate,
        pictures=1,
        dropped=dropped,
        psnr=psnr,
        worst_psnr=psnr,
        ssim=0.9,
        worst_ssim=0.9,
        cached_steps=5,
        time_ratio=time_ratio,
    )


def test_figures_are_means_worst_ones_and_a_median_of_time() -> None:
    """One slow run moves no median; one bad picture shows as the worst."""
    found = figures(
        [
            comparison(40, ssim=0.99, seconds=1),
            comparison(20, ssim=0.80, seconds=1.2),
            comparison(30, ssim=0.91, seconds=400),
        ],
        dropped=False,
    )
    assert (found.candidate, found.pictures) == (3, 3)
    assert found.psnr == pytest.approx(30)
    assert found.ssim == pytest.approx(0.9)
    assert found.time_ratio == pytest.approx(0.3)
    assert (found.worst_psnr, found.worst_ssim, found.cached_steps) == (20, 0.80, 5)


def test_a_candidate_is_given_up_when_its_mean_is_far_under_the_target() -> None:
    """6 dB, twice the error: one bad picture among good ones is not enough."""
    assert is_hopeless([comparison(23.9)], 30)
    assert not is_hopeless([comparison(24.1)], 30)
    assert not is_hopeless([comparison(10), comparison(45)], 30)


def test_the_front_is_what_no_other_one_beats() -> None:
    """Slower and farther off is beaten; equal ones are not; dropped ones neither beat nor stand."""
    found = [
        summed(0, 50, 0.8),
        summed(1, 40, 0.5),
        summed(2, 39, 0.6),  # Beaten by 1.
        summed(3, 40, 0.5),
        summed(4, 31, 0.3),
        summed(5, 55, 0.1, dropped=True),
    ]
    assert pareto_front(found) == {0, 1, 3, 4}
    assert pareto_front([]) == frozenset()


def test_the_fastest_at_the_target_is_recommended() -> None:
    """Never one under the target, a dropped one, or one that is slower than no cache."""
    found = [
        summed(0, 50, 0.8),
        summed(1, 40, 0.5),
        summed(2, 29.9, 0.2),
        summed(3, 60, 0.1, dropped=True),
        summed(4, 60, 1.0),
    ]
    assert recommended(found, 30) == 1
    assert recommended(found, 45) == 0
    assert recommended(found, 55) is None
    assert recommended([summed(6, 31, 0.5), summed(7, 33, 0.5)], 30) == 7


@pytest.mark.parametrize("steps", [1, 4, 8, 20, 28, 50, 1000])
def test_the_usual_candidates_can_run_with_any_number_of_steps(steps: int) -> None:
    """They differ from each other, and nothing is wrong with any."""
    found = usual_candidates(steps)
    assert 8 <= len(found) == len(set(found)) <= 12
    for cache in found:
        assert not check_cache(cache, num_blocks={"transformer": 1}, num_inference_steps=steps)


def test_the_usual_candidates_warm_up_as_the_reference_does() -> None:
    """At 50 steps the careful family has the reference configuration's warm-up and forecast."""
    reference = load_acceleration(REFERENCE).cache
    first = usual_candidates(50)[0]
    assert len(usual_candidates(50)) == 12
    assert isinstance(reference.method, DBCache)
    assert isinstance(first.method, DBCache)
    for name in (
        *("max_warmup_steps", "warmup_interval", "fn_compute_blocks", "bn_compute_blocks"),
        "max_continuous_cached_steps",
    ):
        assert getattr(first.method, name) == getattr(reference.method, name), name
    assert first.calibrator == reference.calibrator


@pytest.mark.parametrize(
    "cache",
    [
        *usual_candidates(50),
        CacheSettings(method=DBCache(steps_computation_mask="fast")),
        CacheSettings(method=DBPrune(), calibrator=TaylorSeer(taylorseer_order=2)),
    ],
)
def test_the_yaml_means_the_same_settings(cache: CacheSettings, tmp_path: Path) -> None:
    """What is written is a file that the server reads back to the last option."""
    path = tmp_path / "best.yaml"
    path.write_text(cache_dit_yaml(cache))
    assert load_acceleration(path).cache == cache
    assert list(yaml.safe_load(path.read_text())) == ["cache_config"]
