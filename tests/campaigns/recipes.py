"""What the campaigns generate: a few requests whose undisturbed results are known beforehand."""

from __future__ import annotations

from typing import Final

from tests.distributed.generations import MASKED, OFF, fields

from ditcast.v1.acceleration_pb2 import CacheConfig, DBCache
from ditcast.v1.generation_pb2 import OUTPUT_FORMAT_PNG, OutputOptions
from ditcast_client.fields import GenerateFields

STEPS: Final = 8
"""Of the shortest: faults strike in one of these."""

RECIPES: Final[dict[str, GenerateFields]] = {
    "plain": fields(width=96, height=96, seed=1),
    "two": fields(width=96, height=192, seed=2**64 - 1, num_images=2),
    "own cache": fields(
        width=192, height=96, seed=3, cache=MASKED, output=OutputOptions(format=OUTPUT_FORMAT_PNG)
    ),
    "long": fields(width=96, height=96, seed=4, cache=OFF, num_inference_steps=24),
}
"""Of sizes that two ranks can share, and three."""

CACHES: Final[dict[str, CacheConfig]] = {
    "off": OFF,
    "masked": MASKED,
    "threshold": CacheConfig(
        db_cache=DBCache(fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.3)
    ),
}
"""What clients configure; it is in force for the recipes that bring none of their own."""
