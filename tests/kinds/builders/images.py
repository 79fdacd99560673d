"""Pipelines that make pictures, each as small as its architecture allows, with weights of noise."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImageEditPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tests.kinds.builders import texts
from tests.kinds.builders.texts import WIDTH
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    LlamaForCausalLM,
    PaddleOCRVLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3ForCausalLM,
    Qwen3Model,
)

LATENTS = 4
"""Channels of the latents."""
LEVELS = 4
"""Levels of the usual VAE: each but the last halves the sides."""


def _vae(levels: int = LEVELS, **changed: object) -> AutoencoderKL:
    options: dict[str, object] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (8,) * levels,
        "layers_per_block": 1,
        "latent_channels": LATENTS,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 0.36,
        "shift_factor": 0.12,
    }
    return AutoencoderKL(**options | changed)


def _qwen_image_parts(levels: int) -> dict[str, object]:
    return {
        "transformer": QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=4 * LATENTS,
            out_channels=LATENTS,
            num_layers=4,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(8, 4, 4),
        ),
        "vae": AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=LATENTS,
            dim_mult=[1] * (levels + 1),
            num_res_blocks=1,
            temperal_downsample=[False] * levels,
            latents_mean=[0.0] * LATENTS,
            latents_std=[1.0] * LATENTS,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_encoder": texts.qwen_vl(),
        "tokenizer": texts.qwen_tokenizer(),
    }


def qwen_image() -> object:
    """Make a `QwenImagePipeline`."""
    return QwenImagePipeline(**_qwen_image_parts(levels=3))


def qwen_image_edit() -> object:
    """Make a `QwenImageEditPipeline`; its VAE is deep: it resizes each picture to a megapixel."""
    # Not the usual one, half of which is for videos and needs torchvision.
    processor = PaddleOCRVLProcessor(
        image_processor=Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56),
        tokenizer=texts.qwen_tokenizer(),
    )
    return QwenImageEditPipeline(**_qwen_image_parts(levels=4), processor=processor)


def flux() -> object:
    """Make a `FluxPipeline`: two lists of blocks, guidance as an embedding."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=texts.clip(CLIPTextModel),
        tokenizer=texts.clip_tokenizer(),
        text_encoder_2=texts.t5(),
        tokenizer_2=texts.t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            in_channels=4 * LATENTS,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
    )


def flux2() -> object:
    """Make a `Flux2Pipeline`: guidance as an embedding."""
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_flux2_vae(),
        text_encoder=texts.mistral(),
        # Not the usual processor, which needs torchvision.
        tokenizer=texts.qwen_tokenizer(),
        transformer=_flux2_transformer(guidance_embeds=True),
    )


def flux2_klein() -> object:
    """Make a `Flux2KleinPipeline`, which takes three layers of its text encoder."""
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_flux2_vae(),
        text_encoder=texts.qwen3(Qwen3ForCausalLM, layers=28),
        tokenizer=texts.qwen_tokenizer(),
        transformer=_flux2_transformer(guidance_embeds=False),
        is_distilled=False,
    )


def _flux2_vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * LEVELS,
        up_block_types=("UpDecoderBlock2D",) * LEVELS,
        block_out_channels=(8,) * LEVELS,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=4,
        sample_size=64,
    )


def _flux2_transformer(*, guidance_embeds: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=4 * LATENTS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def z_image() -> object:
    """Make a `ZImagePipeline`."""
    transformer: Any = ZImageTransformer2DModel(
        in_channels=LATENTS,
        dim=32,
        n_layers=4,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 64, 64],
    )
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        # It is made without being set.
        pad.data.normal_()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=texts.qwen3(Qwen3Model),
        tokenizer=texts.qwen_tokenizer(),
        transformer=transformer,
    )


def stable_diffusion_3() -> object:
    """Make a `StableDiffusion3Pipeline`."""
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=texts.clip(CLIPTextModelWithProjection),
        tokenizer=texts.clip_tokenizer(),
        text_encoder_2=texts.clip(CLIPTextModelWithProjection),
        tokenizer_2=texts.clip_tokenizer(),
        text_encoder_3=texts.t5(2 * WIDTH),
        tokenizer_3=texts.t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=LATENTS,
            out_channels=LATENTS,
            num_layers=4,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=16,
        ),
    )


def pixart_sigma() -> object:
    """Make a `PixArtSigmaPipeline`, which calls nobody back."""
    return PixArtSigmaPipeline(
        tokenizer=texts.t5_tokenizer(),
        text_encoder=texts.t5(),
        vae=_vae(shift_factor=None),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=LATENTS,
            out_channels=2 * LATENTS,
            num_layers=4,
            sample_size=32,
            cross_attention_dim=32,
            caption_channels=WIDTH,
            patch_size=2,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )


def chroma() -> object:
    """Make a `ChromaPipeline`."""
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=texts.t5(),
        tokenizer=texts.t5_tokenizer(),
        transformer=ChromaTransformer2DModel(
            in_channels=4 * LATENTS,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
    )


def hidream() -> object:
    """Make a `HiDreamImagePipeline`, which makes as many latents of any size, 128 x 128."""
    return HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(levels=1),
        text_encoder=texts.clip(CLIPTextModelWithProjection, positions=128),
        tokenizer=texts.clip_tokenizer(),
        text_encoder_2=texts.clip(CLIPTextModelWithProjection, positions=128),
        tokenizer_2=texts.clip_tokenizer(),
        text_encoder_3=texts.t5(),
        tokenizer_3=texts.t5_tokenizer(),
        text_encoder_4=texts.llama(LlamaForCausalLM),
        tokenizer_4=texts.llama_tokenizer(),
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=LATENTS,
            out_channels=LATENTS,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(32, 32),
            llama_layers=(0, 1, 0, 1),
        ),
    )


def lumina2() -> object:
    """Make a `Lumina2Pipeline`."""
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=LATENTS,
            hidden_size=32,
            num_layers=4,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(8, 4, 4),
            axes_lens=(512, 64, 64),
            cap_feat_dim=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=texts.gemma(),
        tokenizer=texts.gemma_tokenizer(),
    )


def stable_diffusion_xl() -> object:
    """Make a `StableDiffusionXLPipeline`: a UNet, which cache-dit does not know."""
    return StableDiffusionXLPipeline(
        vae=_vae(shift_factor=None),
        text_encoder=texts.clip(CLIPTextModel),
        text_encoder_2=texts.clip(CLIPTextModelWithProjection),
        tokenizer=texts.clip_tokenizer(),
        tokenizer_2=texts.clip_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * WIDTH,
            attention_head_dim=2,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            transformer_layers_per_block=1,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def aura_flow() -> object:
    """Make an `AuraFlowPipeline`: of a kind that nobody had in mind."""
    return AuraFlowPipeline(
        tokenizer=texts.t5_tokenizer(),
        text_encoder=texts.umt5(),
        vae=_vae(),
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=LATENTS,
            num_mmdit_layers=1,
            num_single_dit_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=32,
            out_channels=LATENTS,
            pos_embed_max_size=64,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
