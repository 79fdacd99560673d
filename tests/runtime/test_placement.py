"""A pipeline placed in every way gives the picture that it gives plainly, however it is switched.

On a CPU: where offloading needs an accelerator, its hooks move from main memory to main memory.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditcast_runtime.acceleration import Accelerator
from ditcast_runtime.arguments import call_arguments
from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.generation import OutputOptions, Parameters
from ditcast_runtime.launches import Launch, SharedFile
from ditcast_runtime.loading import load
from ditcast_runtime.pipeline import Pipeline
from ditcast_runtime.placement import Placement, check_placement, loading_faults
from ditcast_runtime.settings import (
    Acceleration,
    CacheSettings,
    Compile,
    DBCache,
    LoadingSettings,
    Offload,
)

CPU = torch.device("cpu")
STEPS = 4
CACHED = CacheSettings(
    method=DBCache(
        fn_compute_blocks=1,
        steps_computation_mask=(1, 1, 0, 1),
        steps_computation_policy="static",
        enable_separate_cfg=True,
    )
)


def launch_with(settings: LoadingSettings) -> Launch:
    """Give the first frame to a rank."""
    return Launch(
        epoch=1,
        rank=0,
        local_rank=0,
        world_size=1,
        store=SharedFile(path=""),
        stacks="",
        model=str(STARTER_MODEL),
        model_revision="",
        variant="",
        device="cpu",
        acceleration=Acceleration(),
        loading=settings,
        warm_up=(),
        threads=1,
        prompt_cache_bytes=0,
        json_logs=True,
        log_level="error",
    )


def loaded(settings: LoadingSettings) -> Pipeline:
    """Load the embedded model as a rank does."""
    return Pipeline.load(launch_with(settings), STARTER_MODEL, CPU, lambda *_: None)


def forced(settings: LoadingSettings) -> Pipeline:
    """Place it as on an accelerator."""
    pipe = load(STARTER_MODEL, "", settings, CPU, lambda *_: None)
    placement = Placement(pipe, settings, CPU)
    accelerator = Accelerator(pipe, Acceleration(), 1, CPU)
    accelerator.switching = placement.lifted
    placement.place(accelerator.block_lists)
    pipeline = Pipeline(pipe, accelerator, CPU)
    accelerator.enable()
    placement.finish()
    return pipeline


class Silent:
    """Watches, and tells nobody."""

    def denoising_began(self, sigmas: tuple[float, ...]) -> None:
        """Tell nobody."""

    def step_ended(self, step: int, total_steps: int, timestep: float, sigma: float | None) -> None:
        """Tell nobody."""

    def denoising_ended(self) -> None:
        """Tell nobody."""


def picture(pipeline: Pipeline, cache: CacheSettings, images: int = 1) -> bytes:
    """Make little pictures under cache settings, and clean up as a rank does."""
    parameters = Parameters(
        prompt="a red circle",
        negative_prompt=" ",
        width=64,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=None,
        true_cfg_scale=3.0,
        seed=1,
        num_images=images,
        sigmas=(),
        pipeline_kwargs={},
        output=OutputOptions(),
        cache=cache,
    )
    pipeline.accelerator.switch(cache, STEPS, two_passes=True)
    made = pipeline.run(call_arguments(pipeline.signature, parameters), Silent())
    pipeline.clean_up(None)
    return b"".join(bytes(output) for output in made.outputs)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain() -> dict[str, bytes]:
    """Give the pictures of the pipeline as it is, without a cache and with one."""
    pipeline = loaded(LoadingSettings())
    pictures = {
        "off": picture(pipeline, CacheSettings()),
        "cached": picture(pipeline, CACHED),
        "two": picture(pipeline, CacheSettings(), images=2),
    }
    assert pictures["off"] != pictures["cached"]
    return pictures


@pytest.mark.parametrize("offload", [Offload.LAYERWISE, Offload.MODEL])
def test_offloading_changes_no_byte_whatever_the_cache_does(
    plain: dict[str, bytes], offload: Offload
) -> None:
    """Switching the cache on and off leaves the hooks in place, and the bytes the same."""
    settings = LoadingSettings(offload=offload)
    pipeline = forced(settings) if offload is Offload.MODEL else loaded(settings)
    for cache, name in ((CACHED, "cached"), (CacheSettings(), "off"), (CACHED, "cached")):
        assert picture(pipeline, cache) == plain[name]
    assert hooked(pipeline, offload)


def hooked(pipeline: Pipeline, offload: Offload) -> bool:
    """Say whether the hooks are there still."""
    transformer: Any = pipeline.pipe.transformer
    if offload is Offload.MODEL:
        return hasattr(transformer, "_hf_hook")
    blocks = transformer.transformer_blocks
    return all(block._forward_pre_hooks for block in blocks)


def test_the_vae_decodes_one_by_one_and_in_tiles(plain: dict[str, bytes]) -> None:
    """Slices change no byte; tiles are used for larger pictures than these."""
    pipeline = loaded(LoadingSettings(vae_slicing=True, vae_tiling=True))
    assert pipeline.pipe.vae.use_slicing
    assert pipeline.pipe.vae.use_tiling
    assert picture(pipeline, CacheSettings(), images=2) == plain["two"]


def test_a_large_picture_is_decoded_in_tiles() -> None:
    """Several small decodes in place of one, and a picture of the same size."""
    vae = loaded(LoadingSettings(vae_tiling=True)).pipe.vae
    decoded: list[int] = []
    vae.decoder.register_forward_hook(lambda *_: decoded.append(1))
    latents = torch.zeros(1, vae.config.z_dim, 1, 40, 40)
    tiled = vae.decode(latents).sample
    assert len(decoded) > 1
    vae.disable_tiling()
    decoded.clear()
    assert vae.decode(latents).sample.shape == tiled.shape
    assert len(decoded) == 1


def test_channels_last_moves_convolutions_and_hardly_a_pixel(plain: dict[str, bytes]) -> None:
    """Some convolution's weights lie otherwise; the picture differs by rounding at most."""
    pipeline = loaded(LoadingSettings(channels_last=True))
    convolutions = [
        part
        for part in pipeline.pipe.vae.modules()
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Conv3d)) and part.weight.shape[1] > 1
    ]
    assert any(not part.weight.is_contiguous() for part in convolutions)
    assert furthest(picture(pipeline, CacheSettings()), plain["off"]) <= 1


# What torch.compile imports warns of what torch itself will drop.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("what", [Compile.REGIONAL, Compile.WHOLE])
def test_what_is_compiled_is_marked_once_cache_dit_has_wrapped_it(what: Compile) -> None:
    """Nothing is compiled before the first call: the blocks, or the transformer, are to be."""
    transformer: Any = loaded(LoadingSettings(compile=what)).pipe.transformer
    whole = transformer._compiled_call_impl is not None
    blocks = {block._compiled_call_impl is not None for block in transformer.transformer_blocks}
    assert (whole, blocks) == (what is Compile.WHOLE, {what is Compile.REGIONAL})


def test_each_component_has_the_number_type_that_it_was_given() -> None:
    """The others have the usual one, which is what the receipt says."""
    types = (("text_encoder", "bfloat16"),)
    pipeline = forced(LoadingSettings(dtype="float32", component_dtypes=types))
    assert pipeline.pipe.text_encoder.dtype is torch.bfloat16
    assert pipeline.pipe.transformer.dtype is torch.float32


def test_the_files_of_a_variant_are_those_that_are_loaded(tmp_path: Path) -> None:
    """A component that has the variant is loaded of it, the others without; progress has bytes."""
    model = tmp_path / "model"
    shutil.copytree(STARTER_MODEL, model)
    [plain] = (model / "vae").glob("*.safetensors")
    weights = load_file(plain)
    weights["decoder.conv_in.bias"] = torch.full_like(weights["decoder.conv_in.bias"], 7.0)
    save_file(weights, plain.with_name(f"{plain.stem}.fp16.safetensors"), {"format": "pt"})
    told: list[tuple[str, int, int]] = []
    pipe = load(model, "fp16", LoadingSettings(), CPU, lambda *stage: told.append(stage))
    assert set(pipe.vae.decoder.conv_in.bias.tolist()) == {7.0}
    assert pipe.transformer.dtype is torch.float32
    assert len(told) == len(pipe.components)
    assert max(done for _, done, _ in told) > 0
    assert len({total for _, _, total in told}) == 1


def test_what_this_pipeline_cannot_is_said_by_name() -> None:
    """A VAE without tiles, a transformer that names no blocks, and what needs an accelerator."""
    pipeline = loaded(LoadingSettings())
    pipe: Any = pipeline.pipe
    assert loading_faults(pipe, pipeline.accelerator) == {}
    vae = pipe.vae
    pipe.vae = torch.nn.Linear(1, 1)
    pipe.transformer._repeated_blocks = None
    try:
        faults = loading_faults(pipe, pipeline.accelerator)
    finally:
        pipe.vae = vae
        del pipe.transformer._repeated_blocks
    assert set(faults) == {"vae_tiling", "vae_slicing", "compile=regional"}
    for offload in (Offload.MODEL, Offload.SEQUENTIAL):
        launch = launch_with(LoadingSettings(offload=offload))
        with pytest.raises(ConfigError, match="needs an accelerator"):
            check_placement(launch, pipe, pipeline.accelerator, CPU)


def furthest(first: bytes, second: bytes) -> int:
    """Give the largest difference of two pictures, in levels."""
    assert len(first) == len(second)
    return max(abs(left - right) for left, right in zip(first, second, strict=True))
