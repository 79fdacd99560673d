"""Makes LoRA files for a pipeline's transformer: noise, in shapes read from its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ditcast_runtime.config import STARTER_MODEL

RANK = 2
STRENGTH = 0.15
"""Standard deviation of the noise: enough to change every picture, too little to drown it."""


def write_adapter(file: Path, *layers: str, seed: int, kohya: bool = False) -> None:
    """Write an adapter for all layers of the embedded model's transformer with such names.

    Args:
        file: Where to.
        layers: Parts of the names of its linear layers.
        seed: Of the noise.
        kohya: Name and scale the weights as that trainer does, and not as peft.
    """
    noise = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, (outputs, inputs) in _shapes(layers):
        down = noise.normal(0, STRENGTH, (RANK, inputs)).astype(np.float32)
        up = noise.normal(0, STRENGTH, (outputs, RANK)).astype(np.float32)
        if kohya:
            stem = "lora_unet_" + name.replace(".", "_")
            weights |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            weights[f"{stem}.alpha"] = np.array(RANK / 2, np.float32)
        else:
            stem = f"transformer.{name}"
            weights |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save_file(weights, file)


def write_misfit(file: Path) -> None:
    """Write one that has a layer of a width that no layer of the model has."""
    [(name, (outputs, _)), *_] = _shapes(("attn.to_q",))
    stem = f"transformer.{name}"
    down, up = np.ones((RANK, 3), np.float32), np.ones((outputs, RANK), np.float32)
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, file)


def _shapes(layers: tuple[str, ...]) -> Iterator[tuple[str, list[int]]]:
    [weights] = (STARTER_MODEL / "transformer").glob("*.safetensors")
    with safe_open(weights, "numpy") as file:
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            name, _, kind = key.rpartition(".")
            shape = file.get_slice(key).get_shape()
            if kind == "weight" and len(shape) == 2 and any(part in name for part in layers):
                yield name, shape
