"""kustomize itself, where there is one, renders what the reader of these tests does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.deploy.manifests import Manifest, overlays, render

PROGRAMS = {"kustomize": "build", "kubectl": "kustomize"}


@pytest.mark.mesh
@pytest.mark.parametrize("folder", overlays(), ids=lambda path: path.name)
def test_kustomize_renders_the_same(folder: Path) -> None:
    """All that the other tests find in a manifest is then in what is deployed."""
    for program, command in PROGRAMS.items():
        found = shutil.which(program)
        if found is not None:
            done = subprocess.run([found, command, folder], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert _by_name(list(yaml.safe_load_all(done.stdout))) == _by_name(render(folder))
            return
    pytest.skip("neither kustomize nor kubectl is installed")


def _by_name(manifests: list[Manifest]) -> dict[str, object]:
    # As JSON: aliases and dates are no difference. Patches lose a line's end at their own.
    return {
        f"{each['kind']} {each['metadata']['name']}": json.loads(
            json.dumps(each).replace('\\n"', '"')
        )
        for each in manifests
    }
