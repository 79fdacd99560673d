"""Which files of a folder are loaded: safetensors alone, of the variant where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.weights import check_weights, weight_files

INDEX = {
    "_class_name": "SomePipeline",
    "transformer": ["diffusers", "Some"],
    "vae": ["diffusers", "Other"],
    "scheduler": ["diffusers", "Steps"],
    "image_encoder": [None, None],
    "boundary_ratio": 0.9,
}


def folder(tmp_path: Path, *files: str) -> Path:
    """Make a model of empty files."""
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(model: Path, variant: str = "") -> dict[str, list[str]]:
    """Give the names of the files that would be loaded."""
    return {
        name: [file.name for file in files] for name, files in weight_files(model, variant).items()
    }


def test_the_variant_is_taken_where_there_is_one(tmp_path: Path) -> None:
    """A component without files of the variant is loaded without; of two forms never both."""
    model = folder(
        tmp_path,
        "transformer/part-00001-of-00002.safetensors",
        "transformer/part-00002-of-00002.safetensors",
        "transformer/part.fp16-00001-of-00001.safetensors",
        "vae/part.safetensors",
        "vae/part.bin",
        "other.safetensors",
    )
    plain = ["part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors"]
    assert names(model) == {"transformer": plain, "vae": ["part.safetensors"]}
    fp16 = ["part.fp16-00001-of-00001.safetensors"]
    assert names(model, "fp16") == {"transformer": fp16, "vae": ["part.safetensors"]}
    assert check_weights(model, "fp16") == []


@pytest.mark.parametrize(
    ("files", "variant", "field", "reason"),
    [
        (["vae/part.bin"], "", "model", "vae has part.bin and no safetensors"),
        (["vae/part.fp16.safetensors"], "", "model", "only the variants fp16"),
        (["vae/part.fp16.safetensors"], "bf16", "variant", "it has fp16"),
        (["vae/part.safetensors"], "fp16", "variant", "it has none"),
    ],
)
def test_weights_that_cannot_be_loaded_are_refused_with_the_reason(
    tmp_path: Path, files: list[str], variant: str, field: str, reason: str
) -> None:
    """The component, the file and what there is instead are named."""
    problems = check_weights(folder(tmp_path, *files), variant)
    assert any(problem.field == field and reason in problem.reason for problem in problems)


def test_what_has_no_index_is_no_model(tmp_path: Path) -> None:
    """A folder without a readable index lists no components."""
    (tmp_path / "model_index.json").write_text("{")
    assert check_weights(tmp_path, "")


def test_the_embedded_model_is_loaded_whole() -> None:
    """All its weight files are of components: none is left out of the digest."""
    found = [file for files in weight_files(STARTER_MODEL, "").values() for file in files]
    assert sorted(found) == sorted(STARTER_MODEL.rglob("*.safetensors"))
