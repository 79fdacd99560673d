"""The commands of deploy/README.md: run, but for those of container engines and clusters."""

from __future__ import annotations

import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from tests.docs.commands import ROOT, commands

from ditcast_runtime.hosts.handshake import Secret

PAGE = ROOT / "deploy" / "README.md"
TEXT = PAGE.read_text("utf-8")
OUTSIDE = ("docker", "kubectl")


OUTSIDE_LINES = [line.partition("#")[0] for line in commands(PAGE) if line.startswith(OUTSIDE)]
OUR_LINES = [line for line in commands(PAGE) if not line.startswith(OUTSIDE)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Run what is ours in a folder like the checkout, and give it."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    for line in OUR_LINES:
        subprocess.run(["sh", "-euc", line], cwd=tmp_path, check=True)
    return tmp_path


def test_what_is_ours_makes_what_the_others_take(folder: Path) -> None:
    """A secret that is long enough and nobody else's, and a resource with all alerts."""
    Secret.read(folder / "secret", "secret")
    assert (folder / "secret").stat().st_mode & 0o077 == 0
    resource = yaml.safe_load((folder / "rule.yaml").read_text("utf-8"))
    assert resource["kind"] == "PrometheusRule"
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text("utf-8"))
    assert resource["spec"] == rules


@pytest.mark.parametrize("line", OUTSIDE_LINES)
def test_what_needs_a_cluster_names_files_that_there_are(line: str, folder: Path) -> None:
    """And the text says that it was not run."""
    assert "needs a container engine or a cluster" in TEXT
    words = shlex.split(line)
    named = [after for flag, after in pairwise(words) if flag in ("-f", "-k")]
    named += [word.partition("=")[2] for word in words if word.startswith("--from-file=")]
    assert named
    assert all((folder / each).exists() for each in named)
