"""Puts the trained parts together into one pipeline folder that diffusers loads as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")

SERVED_DEFAULTS = """\
# What unset request fields become while this model is served.
defaults:
  width: 128
  height: 128
  num_inference_steps: 20
"""


def partial_pipeline(**parts: object) -> Any:
    """Make a `QwenImagePipeline` of some of `PARTS`: what needs the others, it cannot do."""
    factory: Any = QwenImagePipeline
    return factory(**{name: parts.get(name) for name in PARTS})


def scheduler() -> Any:
    """Make the scheduler of Qwen-Image, with its shift by the size of the picture."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )


def assemble(work: Path, output: Path) -> None:
    """Write the trained parts as a pipeline in float16, and what unset request fields become."""
    half = torch.float16
    text_encoder: Any = Qwen2_5_VLForConditionalGeneration
    partial_pipeline(
        scheduler=scheduler(),
        vae=AutoencoderKLQwenImage.from_pretrained(work / "vae", torch_dtype=half),
        text_encoder=text_encoder.from_pretrained(work / "text_encoder", dtype=half),
        tokenizer=Qwen2Tokenizer.from_pretrained(work / "tokenizer"),
        transformer=QwenImageTransformer2DModel.from_pretrained(
            work / "transformer", torch_dtype=half
        ),
    ).save_pretrained(output)
    for part in ("transformer", "vae"):
        _forget_origin(output / part / "config.json")
    (output / "ditcast.yaml").write_text(SERVED_DEFAULTS)


def _forget_origin(config: Path) -> None:
    """Take out the folder of the training machine, which diffusers writes down."""
    found = json.loads(config.read_text())
    del found["_name_or_path"]
    config.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
