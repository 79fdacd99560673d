"""How learning rates go over a stage of training."""

from __future__ import annotations

import torch


def share_of_learning_rate(step: int, steps: int, warm_up: int, decay: int) -> float:
    """Rise over the first `warm_up` steps, stay at 1, fall to zero over the last `decay`.

    A stage without decay (0) ends at full rate: another goes on from there.
    """
    return min(1.0, (step + 1) / warm_up, (steps - step) / decay if decay else 1.0)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimiser.param_groups:
        group["lr"] = rate
