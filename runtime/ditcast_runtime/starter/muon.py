"""Muon for many thin layers: orthogonal updates, computed for all weights of one shape at once.

The method is Keller Jordan's (https://kellerjordan.github.io/posts/muon). `torch.optim.Muon` takes
one 2D weight at a time: twenty thin blocks have 240 of them in three shapes, for which one batched
product a shape is several times faster, and convolutions are no 2D weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# The reference implementation's quintic: steep at zero, so that small singular values rise fast.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values of each of ``matrices`` (n, rows, columns) close to 1.

    Newton-Schulz iteration in bfloat16, which its fixed point forgives.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, without weight decay, for weights of two or more dimensions.

    A convolution's weight counts as the matrix (outputs, inputs x taps). Taps that never have a
    gradient (see `vae.py`) stay as they are: the iteration leaves columns of zeros alone.

    An update's entries have a root mean square of 0.2 `lr`, as AdamW's about have, so that rates
    for the two are of one size (https://arxiv.org/abs/2502.16982, section 2.2).
    """

    def __init__(
        self, weights: Iterable[Tensor], *, lr: float = 4.5e-3, momentum: float = 0.95
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        del closure
        for group in self.param_groups:
            by_shape: defaultdict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape[0], weight[0].numel()].append(weight)
            for shape, weights in by_shape.items():
                self._move(weights, shape, group["lr"], group["momentum"])

    def _move(
        self, weights: list[Tensor], shape: tuple[int, int], lr: float, momentum: float
    ) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        averages = [self._average(weight) for weight in weights]
        ahead = []
        for gradient, average in zip(gradients, averages, strict=True):
            average.lerp_(gradient, 1 - momentum)
            ahead.append(gradient.lerp(average, momentum).reshape(shape))
        updates = orthogonalise(torch.stack(ahead))
        step = -lr * 0.2 * max(shape) ** 0.5
        for weight, update in zip(weights, updates.to(weights[0].dtype), strict=True):
            weight.add_(update.reshape(weight.shape), alpha=step)

    def _average(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        average: Tensor = state["momentum"]
        return average
