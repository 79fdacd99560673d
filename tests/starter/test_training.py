"""The training script from end to end, with next to nothing to learn."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.starter.stages import OtherRun, Run

STAGES = 7


def _train(work: Path) -> str:
    command = [sys.executable, "-m", "ditcast_runtime.starter.train", "--tiny", "--device", "cpu"]
    finished = subprocess.run(
        [*command, "--work", str(work)], capture_output=True, text=True, check=False, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_script_makes_a_model_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """All stages run, the result has the shipped model's parts; a second start repeats nothing."""
    assert "finished before" not in _train(tmp_path)
    made = tmp_path / "qwen-image-starter"
    index = json.loads((made / "model_index.json").read_text())
    shipped = json.loads((STARTER_MODEL / "model_index.json").read_text())
    parts = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    assert {part: index[part] for part in parts} == {part: shipped[part] for part in parts}
    assert (tmp_path / "contact-sheet.png").is_file()
    assert "20 steps" not in json.loads((tmp_path / "judgement.json").read_text())
    again = _train(tmp_path)
    assert again.count("finished before") == again.count("finished") == STAGES


def test_a_work_folder_is_of_one_run(tmp_path: Path) -> None:
    """Stages of another plan are not mixed in."""
    Run({"steps": 1}, tmp_path)
    with pytest.raises(OtherRun, match=str(tmp_path)):
        Run({"steps": 2}, tmp_path)


def test_only_finished_stages_are_skipped(tmp_path: Path) -> None:
    """A stage that was interrupted is done again, and one that was finished is not."""
    done: list[str] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    run = Run({"steps": 1}, tmp_path)
    run.stage("one", lambda: done.append("one"))
    with pytest.raises(KeyboardInterrupt):
        run.stage("two", interrupted)
    run = Run({"steps": 1}, tmp_path)
    run.stage("one", lambda: done.append("one again"))
    run.stage("two", lambda: done.append("two"))
    assert done == ["one", "two"]


def test_what_follows_a_new_stage_is_done_again(tmp_path: Path) -> None:
    """A transformer trained for longer is assembled and judged again."""
    done: list[str] = []
    for steps in (1, 2):
        run = Run({}, tmp_path)
        for name in ("autoencoder", f"transformer, {steps} steps", "assembly"):
            run.stage(name, functools.partial(done.append, name))
    assert done[3:] == ["transformer, 2 steps", "assembly"]
