"""The part of the benchmark suite that runs other servers, one of them installed from PyPI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Compare the servers in the short form; a side with wrong pixels ends it."""
    path = tmp_path_factory.mktemp("peers") / "run.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "peers", "--output", str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    if result.returncode and "pip install" in result.stderr:
        pytest.skip("cache-dit 1.3.4 cannot be installed: needs a package index that has it")
    assert result.returncode == 0, result.stderr
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def table(run: dict[str, Any], title: str) -> list[list[str]]:
    """Give the rows of one of the tables."""
    found: list[list[str]] = next(one["rows"] for one in run["tables"] if one["title"] == title)
    return found


def test_every_server_is_measured_alone_and_with_clients(run: dict[str, Any]) -> None:
    """All of them stand beside the pipeline called directly."""
    names = {figure["name"] for figure in run["figures"]}
    assert "peers_alone_direct" in names
    for server in ("ditcast", "cache-dit", "fastapi"):
        assert {f"peers_alone_{server}", f"peers_added_{server}"} <= names
        assert {f"peers_throughput_{server}_8", f"peers_latency_{server}_8"} <= names
    assert {"peers_ditcast_to_cache-dit_8", "peers_ditcast_to_fastapi_8"} <= names


def test_all_servers_draw_the_same_pixels(run: dict[str, Any]) -> None:
    """Another server of the same versions makes every byte; the older cache-dit is measured."""
    rows = {row[0]: row[1:] for row in table(run, "Same seeds, same pixels")}
    compared, same, _ = rows["FastAPI"]
    assert compared == same != "0"
    assert any(name.startswith("cache_dit.serve") for name in rows)


def test_only_ditcast_refuses_what_it_cannot_do(run: dict[str, Any]) -> None:
    """Each bad request was really sent, and each answer is the server's own."""
    answers = {(row[0], row[1]): row[2] for row in table(run, "A bad request")}
    ours = [answer for (server, _), answer in answers.items() if server == "ditcast"]
    assert all(answer.startswith("refused: ") for answer in ours)
    assert answers["FastAPI", "width 100"].startswith("taken: ")


def test_only_ditcast_serves_on_after_the_process_with_the_model_was_killed(
    run: dict[str, Any],
) -> None:
    """The generation that ran is finished with its pixels, and the one that waited too."""
    rows = [row for row in table(run, "A process is killed") if "model" in row[1]]
    told = {row[0]: row[2:] for row in rows}
    ours = told.pop("ditcast")
    assert ours[:2] == ["the right picture", "the right picture"]
    assert ours[2].endswith("the right picture")
    for running, waiting, serves in told.values():
        assert running.startswith("the connection broke")
        assert waiting.startswith("the connection broke")
        assert serves.startswith("never")
