"""What cache-dit asks of an accelerator, lent to it on a machine without one.

Only where the ranks run on a CPU: with an accelerator nothing here is called.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from cache_dit.distributed.core import _context_parallel, _templated_ring


@contextlib.contextmanager
def accelerator_on_cpu(device: torch.device) -> Iterator[None]:
    """Let cache-dit find a device type, and a ring its kernels, where there is no accelerator.

    It asks `torch.accelerator.current_accelerator().type` in three places (tensor parallelism of
    the transformer and of the text encoder, data parallelism of the VAE), which is None there.
    """
    if device.type != "cpu":
        yield
        return
    _lend_ring_kernels()
    _context_parallel._all_gather_anything = _gather_uneven  # noqa: SLF001
    original = torch.accelerator.current_accelerator
    torch.accelerator.current_accelerator = lambda *_, **__: torch.device("cpu")
    try:
        yield
    finally:
        torch.accelerator.current_accelerator = original


def _gather_uneven(tensor: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Be `_all_gather_anything`: gloo gathers equal sizes alone, so the shorter are filled up."""
    sizes = _context_parallel._gather_size(tensor.shape[dim], group)  # noqa: SLF001
    filled = list(tensor.shape)
    filled[dim] = max(sizes) - tensor.shape[dim]
    equal = torch.cat([tensor, tensor.new_zeros(filled)], dim=dim).contiguous()
    parts = [torch.empty_like(equal) for _ in sizes]
    dist.all_gather(parts, equal, group=group)
    return torch.cat(
        [part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim=dim
    )


@functools.cache
def _lend_ring_kernels() -> torch.library.Library:
    """Give a ring what it calls: attention that tells its log-sum-exp, and the merging of parts.

    torch has such an attention for CPUs under another name; for the merging cache-dit has its own
    formula, which it takes where it finds no kernel, and it finds one that only Triton can run.
    """
    _templated_ring.fused_merge_attn_states = None
    library = torch.library.Library("aten", "IMPL")  # Its entries end with it: it is kept.
    library.impl("_scaled_dot_product_flash_attention", _attention_with_lse, "CPU")
    return library


def _attention_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - torch fixes the signature
    return_debug_mask: bool = False,  # noqa: ARG001, FBT001, FBT002
    *,
    scale: float | None = None,
) -> tuple[torch.Tensor | int, ...]:
    """Be `aten::_scaled_dot_product_flash_attention`: only its first two results mean something."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
        query, key, value, dropout_p, is_causal, scale=scale
    )
    none = torch.empty(0, dtype=torch.int64)
    return output, lse, none, none, 0, 0, none, none, none
