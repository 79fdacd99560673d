"""Models of the kinds that the chosen tests need, and what direct calls make of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.kinds.kinds import KINDS, Kind

ROOT = Path(__file__).parents[2]


class Models:
    """The models, and their direct calls, each made once for all tests that need it."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder = folder
        self._names = names
        self._run("make", str(folder))
        self._called: dict[int, Path] = {}

    def folder(self, kind: Kind) -> Path:
        """Give the folder of a model."""
        return self._folder / kind.name

    def direct(self, kind: Kind, threads: int) -> bytes:
        """Give the pixels that a direct call on so many threads makes."""
        if threads not in self._called:
            out = self._folder / f"direct-{threads}"
            out.mkdir()
            self._run("direct", str(self._folder), str(out), str(threads))
            self._called[threads] = out
        return (self._called[threads] / kind.name).read_bytes()

    def _run(self, module: str, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", f"tests.kinds.{module}", *arguments, *self._names],
            cwd=ROOT,
            capture_output=True,
            text=True,
            # As the ranks have it: threads that spin while they wait are many times slower.
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "CACHE_DIT_LOG_LEVEL": "error"},
        )
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Make the models of all kinds that the chosen tests are about."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    asked = [call.params.get("kind") for call in calls if call]
    named = {kind.name for kind in asked if isinstance(kind, Kind)}
    chosen = [each.name for each in KINDS if each.name in named]
    return Models(tmp_path_factory.mktemp("models"), chosen)
