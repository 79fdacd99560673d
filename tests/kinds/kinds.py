"""The kinds of pipelines under test: what each is asked for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

PROMPT = "a red fox on a hill"
SEED = 7
STEPS = 9

UNSPLIT = "cache-dit cannot split the sequence"

Value = bool | int | float | str | list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of pipeline, and the call that shows it."""

    name: str
    """Also the name of the function in `builders` that makes it."""
    pipeline: str
    """Class of the pipeline."""
    width: int = 64
    height: int = 64
    num_frames: int | None = None
    pictures: int = 0
    """How many input pictures it is given."""
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    negative_prompt: str | None = None
    kwargs: dict[str, Value] = field(default_factory=dict)
    """What else its call takes."""
    threshold: float = 0.99
    """Residual difference below which a step is cached; from 1 on none is measured."""
    cached: bool = True
    """Whether cache-dit knows it."""
    two_ranks: str = ""
    """Why two ranks cannot share it, as the server says when it starts; empty: they can."""
    passes: int = 1
    """Calls of its transformer in each step."""
    note: str = ""
    """What the table cannot say."""
    listed: bool = True
    """Whether it was one of the kinds that ditcast was meant for from the beginning."""

    @property
    def cache(self) -> dict[str, float]:
        """Settings of the cache: two computed steps, then at most two cached ones in a row."""
        return {
            "fn_compute_blocks": 1,
            "residual_diff_threshold": self.threshold,
            "max_warmup_steps": 2,
            "max_continuous_cached_steps": 2,
        }


KINDS = (
    Kind(
        name="qwen_image",
        pipeline="QwenImagePipeline",
        true_cfg_scale=3.0,
        negative_prompt="dull",
        passes=2,
    ),
    Kind(
        name="qwen_image_edit",
        pipeline="QwenImageEditPipeline",
        note="it needs torchvision for its usual processor; here it has another of transformers",
        pictures=1,
        true_cfg_scale=3.0,
        negative_prompt="dull",
        passes=2,
    ),
    Kind(name="flux", pipeline="FluxPipeline", kwargs={"max_sequence_length": 48}),
    Kind(
        name="flux2",
        pipeline="Flux2Pipeline",
        note="it needs torchvision for its usual processor; here it has a tokenizer alone",
        threshold=2.0,
        guidance_scale=4.0,
        pictures=2,
    ),
    Kind(
        name="flux2_klein",
        pipeline="Flux2KleinPipeline",
        note="differences of this noise are over 1, from where on none is measured",
        threshold=2.0,
        guidance_scale=3.0,
        kwargs={"max_sequence_length": 48},
        passes=2,
    ),
    Kind(
        name="z_image",
        pipeline="ZImagePipeline",
        guidance_scale=3.0,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 64},
    ),
    Kind(
        name="stable_diffusion_3",
        pipeline="StableDiffusion3Pipeline",
        two_ranks=UNSPLIT,
        guidance_scale=5.0,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48},
    ),
    Kind(
        name="pixart_sigma",
        pipeline="PixArtSigmaPipeline",
        guidance_scale=4.5,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48, "use_resolution_binning": False},
    ),
    Kind(
        name="hunyuan_video",
        pipeline="HunyuanVideoPipeline",
        num_frames=9,
        guidance_scale=6.0,
        kwargs={"max_sequence_length": 48},
    ),
    Kind(
        name="wan",
        pipeline="WanPipeline",
        num_frames=9,
        guidance_scale=5.0,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48},
        passes=2,
    ),
    Kind(
        name="wan_2_2",
        pipeline="WanPipeline",
        num_frames=9,
        guidance_scale=4.0,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48, "guidance_scale_2": 3.0},
        passes=2,
    ),
    Kind(
        name="wan_image_to_video",
        pipeline="WanImageToVideoPipeline",
        num_frames=9,
        pictures=1,
        guidance_scale=5.0,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48},
        passes=2,
    ),
    Kind(
        name="ltx_video",
        pipeline="LTXPipeline",
        num_frames=17,
        guidance_scale=3.0,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48},
    ),
    Kind(
        name="cog_video_x",
        pipeline="CogVideoXPipeline",
        num_frames=9,
        guidance_scale=6.0,
        negative_prompt="dull",
    ),
    Kind(
        name="chroma",
        pipeline="ChromaPipeline",
        note="cache-dit puts the ranks' parts of text and picture in another order than the mask's",
        two_ranks="cache-dit does not split the mask",
        guidance_scale=4.0,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48},
        passes=2,
    ),
    Kind(
        name="hidream",
        pipeline="HiDreamImagePipeline",
        note="it makes 128 latents a side of any size: a size that it would change is refused",
        two_ranks=UNSPLIT,
        width=128,
        height=128,
        guidance_scale=4.0,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48},
    ),
    Kind(
        name="lumina2",
        pipeline="Lumina2Pipeline",
        two_ranks=UNSPLIT,
        guidance_scale=4.0,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48},
        passes=2,
    ),
    Kind(
        name="stable_diffusion_xl",
        pipeline="StableDiffusionXLPipeline",
        guidance_scale=5.0,
        negative_prompt="dull",
        cached=False,
        two_ranks="cache-dit does not know StableDiffusionXLPipeline",
    ),
    Kind(
        name="aura_flow",
        pipeline="AuraFlowPipeline",
        note="differences of this noise are over 1, from where on none is measured",
        threshold=2.0,
        two_ranks=UNSPLIT,
        guidance_scale=3.5,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 48},
        listed=False,
    ),
    Kind(
        name="mochi",
        pipeline="MochiPipeline",
        two_ranks=UNSPLIT,
        num_frames=13,
        guidance_scale=4.5,
        negative_prompt="dull",
        kwargs={"max_sequence_length": 32},
        listed=False,
    ),
)
"""All kinds under test."""

BY_NAME = {kind.name: kind for kind in KINDS}
