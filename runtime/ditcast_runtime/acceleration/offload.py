"""Lets the blocks of transformers wait in main memory, each but while it runs: cache-dit's way.

Its hooks stand on the blocks themselves, so that the cache can pass over blocks and be switched.
"""

from __future__ import annotations

from typing import Any

import torch
from cache_dit.offload import layerwise_offload

from ditcast_runtime.acceleration.accelerator import BlockList


def offload_blocks(block_lists: tuple[BlockList, ...], device: torch.device) -> set[Any]:
    """Hook every block, and give all that are hooked; they stay in main memory until they run.

    On an accelerator the next blocks come while the present one runs, four at most.
    """
    names: dict[torch.nn.Module, list[str]] = {}
    for entry in block_lists:
        names.setdefault(entry.transformer, []).extend(_names(entry))
    streams: dict[str, Any] = {"async_transfer": True, "transfer_buckets": 1}
    ahead: dict[str, Any] = {}
    if device.type == "cuda":
        ahead = streams | {"prefetch_limit": True}
    for transformer, blocks in names.items():
        layerwise_offload(
            transformer,
            module_names=blocks,
            onload_device=device,
            offload_device="cpu",
            **ahead,
        )
    return {block for entry in block_lists for block in entry.blocks}


def _names(entry: BlockList) -> list[str]:
    """Name the blocks of a list by their paths in the transformer."""
    [path] = [name for name, part in entry.transformer.named_modules() if part is entry.blocks]
    return [f"{path}.{index}" for index in range(len(entry.blocks))]
