"""Flags, file and variables for loading and the warm-up: what is meant, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import msgspec
import pytest
from tests.service.changing import CURRENT, EVERYWHERE, asking, planned

from ditcast.v1 import acceleration_pb2 as pb
from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.messages import Loading
from ditcast_runtime.settings import (
    Compile,
    LoadingSettings,
    Offload,
    ParallelismSettings,
    WarmUp,
    check_loading,
)
from ditcast_service.config import load
from ditcast_service.loading_bar import LoadingBar

TYPES = {"vae": "float32"}
LAYERWISE = LoadingSettings(offload=Offload.LAYERWISE)


def refused(*arguments: str) -> dict[str, str]:
    """Load what cannot be served; give the reasons by field."""
    with pytest.raises(ConfigError) as error:
        load(arguments, {})
    return {problem.field: problem.reason for problem in error.value.problems}


def test_every_setting_is_a_flag_a_key_and_a_variable(tmp_path: Path) -> None:
    """All three give the same settings."""
    flags = ["--dtype", "float16", "--offload", "layerwise", "--vae-tiling", "--vae-slicing"]
    flags += ["--compile", "regional", "--channels-last", "--variant", ""]
    flags += ["--component-dtype", "vae=float32", "--component-dtype", "text_encoder=bfloat16"]
    flags += ["--warm-up", "128x64", "--warm-up", "64x64@4"]
    file = tmp_path / "server.yaml"
    file.write_text(
        "dtype: float16\noffload: layerwise\nvae_tiling: true\nvae_slicing: true\n"
        "compile: regional\nchannels_last: true\nvariant: ''\n"
        "component_dtypes: {vae: float32, text_encoder: bfloat16}\nwarm_up: [128x64, 64x64@4]\n"
    )
    variables = {
        "DITCAST_DTYPE": "float16",
        "DITCAST_OFFLOAD": "layerwise",
        "DITCAST_VAE_TILING": "true",
        "DITCAST_VAE_SLICING": "true",
        "DITCAST_COMPILE": "regional",
        "DITCAST_CHANNELS_LAST": "true",
        "DITCAST_COMPONENT_DTYPES": "vae=float32,text_encoder=bfloat16",
        "DITCAST_WARM_UP": "128x64,64x64@4",
    }
    config = load(flags, {})
    assert config.loading == LoadingSettings(
        dtype="float16",
        component_dtypes=(("text_encoder", "bfloat16"), ("vae", "float32")),
        offload=Offload.LAYERWISE,
        vae_tiling=True,
        vae_slicing=True,
        compile=Compile.REGIONAL,
        channels_last=True,
    )
    assert config.warm_up == (WarmUp(128, 64), WarmUp(64, 64, num_inference_steps=4))
    assert load(["--config", str(file)], {}) == config
    assert load([], variables) == config


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        (["--offload", "model", "--device", "cpu"], "--offload", "needs an accelerator"),
        (["--offload", "sequential", "--device", "cpu"], "--offload", "needs an accelerator"),
        (["--offload", "half"], "--offload", "none of none, model, sequential, layerwise"),
        (["--compile", "all"], "--compile", "none of none, regional, whole"),
        (["--dtype", "float31"], "--dtype", "did you mean float32"),
        (["--component-dtype", "vea=float32"], "--component-dtype", "did you mean vae"),
        (["--component-dtype", "scheduler=float32"], "--component-dtype", "with weights"),
        (["--component-dtype", "vae=int3"], "--component-dtype", "none of auto"),
        (["--component-dtype", "vae"], "--component-dtype", "NAME=VALUE"),
        (["--variant", "fp16"], "--variant", "it has none"),
        (["--warm-up", "big"], "--warm-up", "WIDTHxHEIGHT"),
        (["--warm-up", "5000x64"], "--warm-up", "16 to 4096"),
        (["--warm-up", "64x64x0"], "--warm-up", "frames are out of range"),
        (["--warm-up", "64x64@0"], "--warm-up", "steps are out of range"),
        (
            ["--offload", "sequential", "--compile", "whole", "--device", "cuda"],
            "--compile",
            "sequential",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments: list[str], field: str, reason: str) -> None:
    """Before any rank starts, under the flag that it came from."""
    assert reason in refused(*arguments)[field]


def test_weights_in_another_form_are_refused_before_a_rank_starts(tmp_path: Path) -> None:
    """A folder with only .bin files could hold code: it is never opened."""
    model = tmp_path / "model"
    shutil.copytree(STARTER_MODEL, model)
    [weights] = (model / "vae").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    assert "no safetensors" in refused("--model", str(model))["--model"]
    (model / "model_index.json").write_text(json.dumps({}))
    assert "lists no components" in refused("--model", str(model))["--model"]


@pytest.mark.parametrize(
    ("settings", "parallelism", "field"),
    [
        (LAYERWISE, {"tensor_parallel_degree": 2}, "loading.offload"),
        (
            LoadingSettings(offload=Offload.MODEL),
            {"ulysses_degree": 2, "extra_parallel_modules": ("text_encoder",)},
            "loading.offload",
        ),
        (LoadingSettings(compile=Compile.WHOLE), {"ulysses_degree": 2}, "loading.compile"),
        (LoadingSettings(compile=Compile.WHOLE), {"tensor_parallel_degree": 2}, "loading.compile"),
        (
            LoadingSettings(vae_tiling=True),
            {"ulysses_degree": 2, "extra_parallel_modules": ("vae",)},
            "loading.vae_tiling",
        ),
        (
            LoadingSettings(vae_slicing=True),
            {"ulysses_degree": 2, "extra_parallel_modules": ("vae",)},
            "loading.vae_slicing",
        ),
    ],
)
def test_what_is_split_over_ranks_cannot_be_placed_otherwise(
    settings: LoadingSettings, parallelism: dict[str, object], field: str
) -> None:
    """The other setting is named in the reason; on one rank nothing is split."""
    split = ParallelismSettings(**parallelism)  # type: ignore[arg-type]
    accelerator = settings.offload is not Offload.NONE
    [problem] = check_loading(settings, parallelism=split, accelerator=accelerator)
    assert problem.field == field
    assert "cannot be combined with" in problem.reason
    assert check_loading(settings, parallelism=ParallelismSettings()) == ()


def test_what_a_pipeline_lacks_is_refused_only_where_it_is_asked_for() -> None:
    """By `field` or `field=value`, as the ranks told."""
    faults = {"vae_tiling": "it has no VAE", "offload=layerwise": "unknown blocks"}
    alone = ParallelismSettings()
    asked = LoadingSettings(vae_tiling=True, offload=Offload.LAYERWISE)
    found = check_loading(asked, parallelism=alone, faults=faults)
    assert {problem.field: problem.kind for problem in found} == {
        "loading.vae_tiling": "unsupported",
        "loading.offload": "unsupported",
    }
    assert check_loading(LoadingSettings(), parallelism=alone, faults=faults) == ()


def test_a_change_of_loading_needs_new_ranks() -> None:
    """What is set is merged, each leaf is an entry, and nothing of it is live."""
    changed = planned(asking(loading={"compile": "COMPILE_WHOLE", "component_dtypes": TYPES}))
    assert changed.problems == ()
    assert changed.wanted.loading == LoadingSettings(
        compile=Compile.WHOLE, component_dtypes=tuple(TYPES.items())
    )
    assert changed.changed == ("loading.compile", "loading.component_dtypes")
    assert {entry.outcome for entry in changed.outcomes()} == {pb.OUTCOME_NEEDS_RELOAD}


def test_what_is_left_unset_stays_or_goes_back_to_the_start() -> None:
    """A path that is named and unset goes back; the whole replaced without loading leaves it."""
    current = dataclasses.replace(CURRENT, loading=LoadingSettings(vae_tiling=True))
    back = planned(asking("loading.vae_tiling"), current=current)
    assert back.wanted.loading == LoadingSettings()
    replaced = planned(asking("*", cache={"disabled": {}}), current=current)
    assert replaced.wanted.loading == current.loading


def test_a_change_that_cannot_be_is_refused_under_its_path() -> None:
    """By what is known of the loaded pipeline, without a rank."""
    facts = msgspec.structs.replace(
        EVERYWHERE, components=("transformer", "vae"), loading_faults={"vae_tiling": "it has none"}
    )
    asked = {"vae_tiling": True, "offload": "OFFLOAD_MODEL", "component_dtypes": {"vea": "auto"}}
    found = planned(asking(loading=asked), facts=facts).problems
    assert {problem.field: problem.kind for problem in found} == {
        "loading.vae_tiling": "unsupported",
        "loading.offload": "unsupported",
        "loading.component_dtypes": "invalid",
    }


def test_the_bar_shows_bytes_where_they_are_known_and_leaves_the_line_to_the_log() -> None:
    """Every drawing ends at the beginning of its line, and only rank 0 is shown."""
    terminal = io.StringIO()
    bar = LoadingBar(terminal)
    report = Loading(
        epoch=1, rank=0, stage="reading", seconds=0, bytes_done=2**29, bytes_total=2**30
    )
    bar.show(report)
    bar.show(Loading(epoch=1, rank=1, stage="waiting", seconds=0))
    bar.clear()
    drawn = terminal.getvalue()
    assert f"[{'#' * 12}{'.' * 12}]  50 %  reading, 0.50 of 1.00 GiB\r" in drawn
    assert "waiting" not in drawn
    assert drawn.endswith("\r")
