"""Every command in docs/LOADING.md is one that a server can be started with."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from tests.docs.commands import ROOT, commands

from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import LoadingSettings
from ditcast_service.config import LOADING_FIELDS, load

PAGE = ROOT / "docs" / "LOADING.md"
TEXT = PAGE.read_text("utf-8")
NEEDS_GPU = "needs a GPU"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the folders that the examples name."""
    for name in ("model", "video"):
        shutil.copytree(STARTER_MODEL, tmp_path / name)
    [weights] = (tmp_path / "model" / "vae").glob("*.safetensors")
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("line", list(commands(PAGE)))
def test_every_command_is_accepted(line: str) -> None:
    """On a machine without an accelerator too, but for those that say that they need one."""
    command, _, comment = line.partition("#")
    serve, *arguments = shlex.split(command)[1:]
    assert serve == "serve"
    load(arguments, {})
    on_cpu = [*arguments, "--device", "cpu"]
    if NEEDS_GPU in comment and "--offload" in arguments:
        with pytest.raises(ConfigError, match="needs an accelerator"):
            load(on_cpu, {})
    else:
        load(on_cpu, {})


def test_every_setting_is_told() -> None:
    """No flag of loading is left out, and no word of one."""
    for field in LOADING_FIELDS:
        assert f"{field.flag} " in TEXT or f"{field.flag}`" in TEXT
    words = json.dumps([*type(LoadingSettings().offload), *type(LoadingSettings().compile)])
    assert all(f"`{word}`" in TEXT or f" {word}" in TEXT for word in json.loads(words))
