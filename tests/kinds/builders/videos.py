"""Pipelines that make videos, each as small as its architecture allows, with weights of noise."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tests.kinds.builders import texts
from tests.kinds.builders.texts import WIDTH
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaModel,
)

LATENTS = 4
"""Channels of the latents, where the architecture leaves it open."""


def hunyuan_video() -> object:
    """Make a `HunyuanVideoPipeline`."""
    return HunyuanVideoPipeline(
        text_encoder=texts.llama(LlamaModel, layers=3),
        tokenizer=texts.llama_tokenizer(),
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=LATENTS,
            out_channels=LATENTS,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=LATENTS,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=texts.clip(CLIPTextModel),
        tokenizer_2=texts.clip_tokenizer(),
    )


def _wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def _wan_transformer(in_channels: int = 16, image_dim: int | None = None) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        image_dim=image_dim,
        rope_max_seq_len=64,
    )


def wan() -> object:
    """Make a `WanPipeline` like Wan 2.1's: one transformer."""
    return WanPipeline(
        tokenizer=texts.t5_tokenizer(),
        text_encoder=texts.umt5(),
        vae=_wan_vae(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=_wan_transformer(),
    )


def wan_2_2() -> object:
    """Make a `WanPipeline` like Wan 2.2's: a transformer for each part of the noise levels."""
    return WanPipeline(
        tokenizer=texts.t5_tokenizer(),
        text_encoder=texts.umt5(),
        vae=_wan_vae(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=_wan_transformer(),
        transformer_2=_wan_transformer(),
        boundary_ratio=0.75,
    )


def wan_image_to_video() -> object:
    """Make a `WanImageToVideoPipeline` like Wan 2.1's, which looks at the picture as well."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        intermediate_size=WIDTH,
        patch_size=8,
    )
    return WanImageToVideoPipeline(
        tokenizer=texts.t5_tokenizer(),
        text_encoder=texts.umt5(),
        vae=_wan_vae(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        image_processor=CLIPImageProcessor(
            crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32}
        ),
        image_encoder=CLIPVisionModel(vision),
        transformer=_wan_transformer(in_channels=36, image_dim=WIDTH),
    )


def ltx_video() -> object:
    """Make an `LTXPipeline`."""
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=texts.t5(),
        tokenizer=texts.t5_tokenizer(),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=4,
            caption_channels=WIDTH,
        ),
    )


def cog_video_x() -> object:
    """Make a `CogVideoXPipeline`."""
    return CogVideoXPipeline(
        tokenizer=texts.t5_tokenizer(),
        text_encoder=texts.t5(),
        vae=AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=LATENTS,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=LATENTS,
            out_channels=LATENTS,
            time_embed_dim=8,
            text_embed_dim=WIDTH,
            num_layers=4,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
        ),
        scheduler=CogVideoXDDIMScheduler(),
    )


def mochi() -> object:
    """Make a `MochiPipeline`: of a kind that nobody had in mind."""
    return MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLMochi(
            latent_channels=12,
            out_channels=3,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=texts.t5(),
        tokenizer=texts.t5_tokenizer(),
        transformer=MochiTransformer3DModel(
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=3,
            pooled_projection_dim=16,
            in_channels=12,
            text_embed_dim=WIDTH,
            time_embed_dim=4,
            max_sequence_length=32,
        ),
    )
