"""Makes a tiny pipeline that turns pictures into videos: Wan 2.2's, with weights of noise.

It takes a first picture, and may take a last one. Run as `python video_model.py FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from tests.kinds.builders import videos

DEFAULTS = "defaults: {width: 64, height: 48, num_frames: 5, num_inference_steps: 3, fps: 12}\n"


def pipeline() -> WanImageToVideoPipeline:
    """Make it with weights that are the same each time."""
    torch.manual_seed(0)
    wan: Any = videos.wan()
    # Beside the noise it sees the pictures, and a mask that says which frames they are.
    config = {**wan.transformer.config, "in_channels": 36}
    parts = wan.components | {"transformer": WanTransformer3DModel.from_config(config)}
    taken = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")
    return WanImageToVideoPipeline(**{name: parts[name] for name in taken})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    made: Any = pipeline()  # diffusers types the call alone
    made.save_pretrained(folder)
    (folder / "ditcast.yaml").write_text(DEFAULTS, "utf-8")
