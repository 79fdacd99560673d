"""Calls a pipeline as one would without ditcast, and writes the pixels that it gives.

Run as `python direct_call.py FOLDER CALL OUT`. CALL is a JSON file: `threads`, `seed`, `pictures`
(a file by parameter) and `arguments` of the call, or `latents`, a file of latents to be decoded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image


def call(pipe: Any, asked: dict[str, Any]) -> Any:  # noqa: ANN401 (floats from 0 to 1)
    """Generate."""
    pictures = {
        name: Image.open(path).convert("L" if "mask" in name else "RGB")
        for name, path in asked["pictures"].items()
    }
    generator = torch.Generator("cpu").manual_seed(asked["seed"])
    return pipe(**asked["arguments"], **pictures, generator=generator, output_type="np")[0]


@torch.no_grad()
def decode(pipe: Any, path: str, side: int) -> Any:  # noqa: ANN401 (as above)
    """Decode latents of Qwen-Image as its pipelines do."""
    latents = safetensors.torch.load_file(path)["latents"]
    latents = pipe._unpack_latents(latents, side, side, pipe.vae_scale_factor)
    mean = torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    scale = 1.0 / torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
    image = pipe.vae.decode(latents / scale + mean, return_dict=False)[0][:, :, 0]
    return pipe.image_processor.postprocess(image, output_type="np")


def main(folder: str, description: str, out: str) -> None:
    """Make the pixels and write them."""
    asked = json.loads(Path(description).read_text("utf-8"))
    torch.set_num_threads(asked["threads"])
    pipe: Any = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    # Twice: the first call of a process now and then rounds otherwise, and ranks have warmed up.
    for _ in range(2):
        made = decode(pipe, asked["latents"], 128) if "latents" in asked else call(pipe, asked)
    Path(out).write_bytes((np.asarray(made) * 255).round().astype(np.uint8).tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
