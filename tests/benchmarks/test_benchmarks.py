"""The benchmark suite, as far as that it measures everything; no time is asserted here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    "latency": {
        "first_event_idle_1",
        "first_event_busy_1",
        "cancel_answer_1",
        "cancel_free_steps_1",
        "cancel_free_1",
        "cancel_further_steps_1",
    },
    "changes": {"configure_live_1", "gap_1", "restart_ratio_1"},
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
        "verdict",
        "note",
    ),
    *("median", "median_low", "median_high"),
    *("minimum", "lower_quartile", "upper_quartile", "maximum"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Run the short form of all parts that a server takes part in."""
    path = tmp_path_factory.mktemp("benchmarks") / "run.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", *FIGURES, "--output", str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for title in ("Fixed cost of a generation", "Cancel to free ranks"):
        assert title in result.stdout
        assert title in path.with_suffix(".md").read_text("utf-8")
    content: dict[str, object] = json.loads(path.read_text("utf-8"))
    return content


def figures(run: dict[str, object]) -> list[dict[str, object]]:
    """Give the figures of a run."""
    listed = run["figures"]
    assert isinstance(listed, list)
    return listed


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
    found: dict[object, set[object]] = {}
    for figure in figures(run):
        found.setdefault(figure["part"], set()).add(figure["name"])
    assert found == FIGURES


def test_every_figure_has_a_median_with_its_spread(run: dict[str, object]) -> None:
    """The order of a figure's numbers is that of the measurements they come from."""
    for figure in figures(run):
        assert figure.keys() == KEYS
        names = ("minimum", "lower_quartile", "median", "upper_quartile", "maximum")
        numbers = [figure[name] for name in names]
        assert all(isinstance(number, (int, float)) for number in numbers)
        assert numbers == sorted(numbers, key=float)  # type: ignore[arg-type]
        assert figure["count"] != 0
