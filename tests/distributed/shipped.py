"""What the tests must know of the embedded model, read from its configuration."""

from __future__ import annotations

import json

from ditcast_runtime.config import STARTER_MODEL

_TRANSFORMER = json.loads((STARTER_MODEL / "transformer" / "config.json").read_text("utf-8"))

HEADS: int = _TRANSFORMER["num_attention_heads"]
BLOCKS: int = _TRANSFORMER["num_layers"]

UNSHARED = next(ranks for ranks in range(2, HEADS + 2) if HEADS % ranks)
"""The fewest ranks that cannot share the heads."""
BOTH = (2, 2) if HEADS % 4 == 0 else (HEADS // 2, 2)
"""Degrees (Ulysses, tensor) that can share the heads between them."""
