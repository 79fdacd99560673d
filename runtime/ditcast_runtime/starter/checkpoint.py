"""Training state on disk: one folder with tensors as safetensors and numbers as JSON."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Facts(msgspec.Struct, frozen=True):
    """What a checkpoint says besides tensors."""

    step: int
    """Steps done."""
    loss: float
    """Running mean of the loss."""


def save(
    folder: Path,
    weights: dict[str, Tensor],
    optimisers: dict[str, torch.optim.Optimizer],
    facts: Facts,
) -> None:
    """Write a checkpoint beside `folder` and put it in its place at once."""
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tensors = {f"weights/{name}": weight.contiguous() for name, weight in weights.items()}
    for name, optimiser in optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": value.contiguous() for key, value in state.items()}
    save_file(tensors, unfinished / "state.safetensors")
    (unfinished / "facts.json").write_bytes(msgspec.json.encode(facts))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def load(
    folder: Path, weights: dict[str, Tensor], optimisers: dict[str, torch.optim.Optimizer]
) -> Facts:
    """Read a checkpoint into `weights`, in place, and `optimisers`."""
    tensors = load_file(folder / "state.safetensors")
    for name, weight in weights.items():
        weight.copy_(tensors[f"weights/{name}"])
    for name, optimiser in optimisers.items():
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, _, rest = key.partition("/")
            if owner == name:
                index, _, entry = rest.partition("/")
                states.setdefault(int(index), {})[entry] = value
        optimiser.load_state_dict(
            {"state": states, "param_groups": optimiser.state_dict()["param_groups"]}
        )
    return msgspec.json.decode((folder / "facts.json").read_bytes(), type=Facts)
