"""Makes and runs a small pipeline with a ControlNet that cache-dit can split: Z-Image's."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageTransformer2DModel,
)

from ditcast_runtime.acceleration import Accelerator
from ditcast_runtime.settings import Acceleration, ParallelismSettings

CPU = torch.device("cpu")
WIDTH = 64
TOKENS = 32
"""Of the prompt: Z-Image pads to a multiple of it."""


def pipeline() -> Any:
    """Make it with weights that are the same each time, and without a text encoder."""
    torch.manual_seed(0)
    shape: Any = {"dim": WIDTH, "n_refiner_layers": 2, "n_heads": 4, "n_kv_heads": 4}
    transformer: Any = ZImageTransformer2DModel(
        in_channels=4, n_layers=4, cap_feat_dim=WIDTH, axes_dims=[4, 6, 6], **shape
    )
    controlnet: Any = ZImageControlNetModel(
        control_layers_places=[0, 2],
        control_refiner_layers_places=[0, 1],
        control_in_dim=4,
        add_control_noise_refiner="control_noise_refiner",
        **shape,
    )
    for parameter in controlnet.parameters():
        # Those that add to the transformer begin at zero: nothing would be seen of them.
        torch.nn.init.normal_(parameter, std=0.05)
    vae: Any = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        shift_factor=0.0,
    )
    pipe: Any = ZImageControlNetPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
        controlnet=controlnet.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(
    parallelism: ParallelismSettings | None, world_size: int, scale: float = 0.9
) -> torch.Tensor:
    """Run a few steps over a picture of noise; give the latents."""
    pipe = pipeline()
    Accelerator(pipe, Acceleration(parallelism=parallelism), world_size, CPU).enable()
    noise = torch.Generator("cpu").manual_seed(2)
    output: torch.Tensor = pipe(
        prompt_embeds=[torch.randn(TOKENS, WIDTH, generator=noise)],
        negative_prompt_embeds=[torch.randn(TOKENS, WIDTH, generator=noise)],
        control_image=torch.rand(1, 3, 64, 64, generator=noise),
        controlnet_conditioning_scale=scale,
        width=64,
        height=64,
        num_inference_steps=3,
        generator=torch.Generator("cpu").manual_seed(1),
        output_type="latent",
        return_dict=False,
    )[0]
    return output
