"""Makes a small pipeline with random weights: Qwen-Image's architecture, 6 blocks of 4 heads.

Its tokenizer and the shapes of its text encoder and VAE are the embedded model's.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from ditcast_runtime.config import STARTER_MODEL

BLOCKS = 6
HEADS = 4
SIDE = 64
"""Of the pictures: 16 tokens."""


@functools.cache
def _pipeline(heads: int) -> QwenImagePipeline:
    """Make it with weights that are the same each time."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    starter = STARTER_MODEL
    text = AutoConfig.from_pretrained(starter / "text_encoder")
    text.text_config.num_hidden_layers = 1
    vae: Any = AutoencoderKLQwenImage.from_config(
        AutoencoderKLQwenImage.load_config(starter / "vae")
    )
    transformer: Any = QwenImageTransformer2DModel(
        in_channels=32,
        out_channels=8,
        num_layers=BLOCKS,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=128,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(starter / "scheduler"),
        vae=vae.eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(text).float().eval(),
        tokenizer=AutoTokenizer.from_pretrained(starter / "tokenizer"),
        transformer=transformer.eval(),
    )


def pipeline(heads: int = HEADS) -> Any:
    """Give a copy that nothing was done to."""
    made: Any = _pipeline(heads)
    parts = {name: copy.deepcopy(part) for name, part in made.components.items()}
    return QwenImagePipeline(**parts)


def tile(vae: Any) -> None:
    """Let a VAE decode in 9 tiles a picture."""
    vae.enable_tiling(
        tile_sample_min_height=32,
        tile_sample_min_width=32,
        tile_sample_stride_height=24,
        tile_sample_stride_width=24,
    )
