"""The embedded pipeline with adapters, with nothing of ditcast: what a script of a user would be.

Run as a module with a folder and a side in pixels: loads `style` and `detail` from the folder,
enables a cache after that, and writes a raw picture back for each of `CHOICES`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cache_dit
import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tests.distributed.generations import MASK, fields

from ditcast_runtime.config import STARTER_MODEL

CHOICES = {
    "one": {"style": 0.8},
    "mix": {"style": 0.5, "detail": -1.25},
}


def main(folder: Path, side: int) -> None:
    """Make one picture for each choice."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    diffusers.utils.logging.disable_progress_bar()
    pipe: Any = DiffusionPipeline.from_pretrained(STARTER_MODEL, torch_dtype=torch.float32)
    for name in ("style", "detail"):
        pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        enable_separate_cfg=True,
        num_inference_steps=len(MASK),
        steps_computation_mask=list(MASK),
        steps_computation_policy="static",
    )
    cache_dit.enable_cache(pipe, cache_config=config)
    # The first call of a process now and then rounds otherwise, by a level of a pixel: ranks have
    # warmed up before they serve.
    picture(pipe, side)
    for choice, weights in CHOICES.items():
        pipe.set_adapters(list(weights), list(weights.values()))
        (folder / f"{choice}.raw").write_bytes(picture(pipe, side))


def picture(pipe: Any, side: int) -> bytes:  # noqa: ANN401 (diffusers says no types)
    """Make the picture that `fields` asks the server for, in another size."""
    asked = fields()
    [image] = pipe(
        prompt=asked["prompt"],
        negative_prompt=asked["negative_prompt"],
        true_cfg_scale=asked["true_cfg_scale"],
        width=side,
        height=side,
        num_inference_steps=len(MASK),
        generator=torch.Generator("cpu").manual_seed(asked["seed"]),
        output_type="pt",
    ).images
    pixels = image.permute(1, 2, 0).mul(255).round().clamp(0, 255).to(torch.uint8)
    return bytes(pixels.contiguous().numpy().tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
