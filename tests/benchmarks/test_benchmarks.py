"""The benchmark suite, as far as that it measures everything; no time is asserted here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from itertools import product
from pathlib import Path

import pytest
from benchmarks.processes import threads_of

ROOT = Path(__file__).parents[2]

FIGURES = {
    "fixed": {"fixed_cost", "fixed_encode"},
    "ratio": {
        f"{name}_{cache}"
        for name in ("ratio", "ratio_added", "ratio_direct")
        for cache in ("no_cache", "reference_cache")
    },
    "previews": {
        "previews_ratio",
        "previews_rank",
        "previews_encode_128",
        "previews_encode_1024",
    },
    "caching": {
        f"caching_{name}_{side}_{threads}"
        for name in ("denoising", "of_ceiling", "cached_steps", "whole", "outside")
        for side in (128, 256)
        for threads in {1, threads_of(1)}
    },
    "batching": {
        f"batching{figure}_2_2_{cache}_{threads}"
        for threads in {1, threads_of(1)}
        for figure, cache in (
            *product(("", "_cpu", "_levels"), ("no_cache", "reference_cache")),
            ("_cached", "reference_cache"),
        )
    },
    "latency": {
        "first_event_idle_1",
        "first_event_busy_1",
        "cancel_answer_1",
        "cancel_free_steps_1",
        "cancel_free_1",
        "cancel_further_steps_1",
    },
    "changes": {"configure_live_1", "restart_ratio_1"},
    "overlap": {
        f"gap_{name}_1"
        for name in (
            *("small", "large_png", "large_raw", "encode", "encoding_adds"),
            *("report", "clean_up", "late", "command", "ahead", "hearing"),
        )
    },
    "start": {
        *("start_ratio", "start_direct", "start_serving"),
        *("start_until_listening", "start_until_joining_the_group"),
        *("start_until_warming_up", "start_until_serving"),
    },
    "growth": {
        f"growth_{axis}_{name}"
        for axis, places in {
            "resolution": (4096, 16384),
            "steps": (4, 16),
            "world_size": (1, 2),
            "clients": (1, 4),
            "queue": (1, 4),
            "watchers": (1, 4),
        }.items()
        for name in (
            *("power", "power_at_end"),
            *(f"{curve}_{place}" for curve in ("all", "service") for place in places),
        )
    },
}
KEYS = {
    *(
        "part",
        "name",
        "title",
        "unit",
        "world_size",
        "threads",
        "count",
        "target",
        "at_least",
        "verdict",
        "to_last",
        "note",
        "point",
    ),
    *("median", "median_low", "median_high"),
    *("minimum", "lower_quartile", "upper_quartile", "maximum"),
}


SLOW = frozenset({"batching", "growth", "overlap", "start"})
"""Parts that take two minutes even in short, which `make test-mesh` runs."""


def short_run(parts: Collection[str], path: Path) -> dict[str, object]:
    """Run the short form of some parts."""
    command = [sys.executable, "-m", "benchmarks", "--quick", *parts, "--output", str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    content: dict[str, object] = json.loads(path.read_text("utf-8"))
    for figure in figures(content):
        assert str(figure["title"]) in path.with_suffix(".md").read_text("utf-8")
    assert "Load averages" in result.stdout
    return content


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Run the short form of the parts that take the least."""
    path = tmp_path_factory.mktemp("benchmarks") / "run.json"
    return short_run(FIGURES.keys() - SLOW, path)


def figures(run: dict[str, object]) -> list[dict[str, object]]:
    """Give the figures of a run."""
    listed = run["figures"]
    assert isinstance(listed, list)
    return listed


def names_of(run: dict[str, object]) -> dict[object, set[object]]:
    """Give the names of a run's figures by their part."""
    found: dict[object, set[object]] = {}
    for figure in figures(run):
        found.setdefault(figure["part"], set()).add(figure["name"])
    return found


def test_a_run_names_its_machine_its_versions_and_the_load(run: dict[str, object]) -> None:
    """A figure is worth nothing without what it was measured on."""
    machine, versions, load = run["machine"], run["versions"], run["load_average"]
    assert isinstance(machine, dict)
    assert isinstance(versions, dict)
    assert isinstance(load, dict)
    assert machine.keys() == {"cpu", "cores", "memory_bytes", "system"}
    assert {"python", "commit", "torch", "diffusers", "cache-dit", "grpcio"} <= versions.keys()
    assert load.keys() == {"before", "after"}
    assert run["quick"] is True


def test_every_part_gives_all_of_its_figures(run: dict[str, object]) -> None:
    """Each part that was asked for is there, and no other."""
    assert names_of(run) == {part: FIGURES[part] for part in FIGURES.keys() - SLOW}


@pytest.mark.mesh
def test_the_slow_parts_give_all_of_their_figures(tmp_path: Path) -> None:
    """And a plot for each axis of growth."""
    found = short_run(SLOW, tmp_path / "run.json")
    assert names_of(found) == {part: FIGURES[part] for part in SLOW}
    for axis in ("resolution", "steps", "world-size", "clients", "queue", "watchers"):
        assert (tmp_path / f"run-growth-{axis}.svg").exists()


def test_every_figure_has_a_median_with_its_spread(run: dict[str, object]) -> None:
    """The order of a figure's numbers is that of the measurements they come from."""
    for figure in figures(run):
        assert figure.keys() == KEYS
        names = ("minimum", "lower_quartile", "median", "upper_quartile", "maximum")
        numbers = [figure[name] for name in names]
        assert all(isinstance(number, (int, float)) for number in numbers)
        assert numbers == sorted(numbers, key=float)  # type: ignore[arg-type]
        assert figure["count"] != 0
