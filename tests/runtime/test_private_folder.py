"""The engine's folder is removed by the engine, or by the next one where that was killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.runtime.fake_ranks import descriptors

from ditcast_runtime.private_folder import PrivateFolder

KILLED = """
import os, signal
from ditcast_runtime.private_folder import PrivateFolder
(PrivateFolder().path / "left").write_text("x")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have temporary files made in a folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_engine_left_is_removed_by_the_next(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL lets nobody clean up; the lock of the dead is free."""
    monkeypatch.setenv("TMPDIR", str(temporary))
    subprocess.run([sys.executable, "-c", KILLED])
    [left] = temporary.iterdir()
    assert (left / "left").is_file()
    mine = PrivateFolder()
    assert list(temporary.iterdir()) == [mine.path]
    mine.remove()


def test_what_is_held_or_not_ours_stays(temporary: Path) -> None:
    """Another engine's folder, and folders of other programs, whatever they are called."""
    first = PrivateFolder()
    others = [temporary / name for name in ("ditcast-bench-x", "other")]
    for other in others:
        other.mkdir()
    (others[1] / "lock").touch()
    second = PrivateFolder()
    assert sorted(temporary.iterdir()) == sorted([first.path, second.path, *others])
    first.remove()
    second.remove()


def test_it_is_private_and_leaves_nothing(temporary: Path) -> None:
    """Nobody else may look into it; removed, it is gone with its descriptor, also twice."""
    before = descriptors()
    folder = PrivateFolder()
    assert folder.path.stat().st_mode & 0o077 == 0
    folder.remove()
    folder.remove()
    assert list(temporary.iterdir()) == []
    assert descriptors() == before
