"""Which weight files of a model's folder are loaded, told by their names alone; without torch.

Only safetensors: every other form of weights can hold code, or pretends to be one that can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ditcast_runtime.settings import Problem

INDEX = "model_index.json"
"""Names the pipeline's class and its components."""

_OTHERS = (".bin", ".ckpt", ".h5", ".msgpack", ".onnx", ".pb", ".pt", ".pth")
_PLAIN = re.compile(r"[^.]+\.safetensors")
_VARIANT = re.compile(r"[^.]+\.([^.]+?)(?:-\d+-of-\d+)?\.safetensors")


def components(folder: Path) -> tuple[str, ...]:
    """Name the components that the model's index lists, with or without weights."""
    try:
        content = json.loads((folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(
        name
        for name, value in content.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None  # noqa: PLR2004
    )


def weight_files(folder: Path, variant: str) -> dict[str, tuple[Path, ...]]:
    """Give the files of each component with any: of the variant, or where it has none, plain."""
    found = {}
    for name in components(folder):
        files = sorted((folder / name).glob("*.safetensors"))
        plain = [file for file in files if _PLAIN.fullmatch(file.name)]
        asked = [file for file in files if variant and variant_of(file) == variant]
        if asked or plain:
            found[name] = tuple(asked or plain)
    return found


def variant_of(file: Path) -> str:
    """Name the variant that a file is of; empty: of none."""
    match = _VARIANT.fullmatch(file.name)
    return match[1] if match else ""


def check_weights(folder: Path, variant: str) -> list[Problem]:
    """Find what keeps a folder's weights from being loaded."""
    names = components(folder)
    if not names:
        return [Problem("model", f"its {INDEX} lists no components")]
    found = weight_files(folder, variant)
    without = [name for name in names if name not in found]
    problems = [problem for name in without for problem in _missing(folder, name)]
    variants = _variants(folder / name for name in names)
    if variant and variant not in variants:
        has = f"it has {', '.join(sorted(variants))}" if variants else "it has none"
        problems.append(Problem("variant", f"the model has no weights of {variant!r}: {has}"))
    return problems


def _missing(folder: Path, name: str) -> list[Problem]:
    """Say why a component without weights has none; a tokenizer has no need of any."""
    files = sorted(folder.joinpath(name).glob("*"))
    variants = _variants([folder / name])
    if variants:
        has = ", ".join(sorted(variants))
        return [Problem("model", f"{name} has only the variants {has}: name one with variant")]
    others = [file.name for file in files if file.suffix in _OTHERS]
    if not others:
        return []
    reason = f"{name} has {others[0]} and no safetensors: other forms of weights can hold code"
    return [Problem("model", f"{reason}, and are never read; save it as safetensors first")]


def _variants(folders: Iterable[Path]) -> set[str]:
    files = (file for folder in folders for file in folder.glob("*.safetensors"))
    return {variant for file in files if (variant := variant_of(file))}
