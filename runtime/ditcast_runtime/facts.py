"""What the loaded pipeline is and takes, found out on the rank once.

From its signature, its configuration and cache-dit's registry, never from a list of kinds.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import math
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import torch
import yaml

from ditcast_runtime.config import GenerationDefaults
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.generation import FRAME_COUNTS, FRAME_RATES, SeparateCfg
from ditcast_runtime.image_parameters import ImageParameter, image_parameters
from ditcast_runtime.launches import Launch
from ditcast_runtime.messages import (
    Facts,
    ParameterFact,
    ParameterKind,
    Support,
    TransformerFact,
)
from ditcast_runtime.pipeline import Pipeline
from ditcast_runtime.placement import components_with_weights, loading_faults, main_dtype
from ditcast_runtime.probe import Extent, find_extent
from ditcast_runtime.settings import Problem
from ditcast_runtime.source import Source

OWN_FIELDS = frozenset(
    {
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "num_inference_steps",
        "guidance_scale",
        "true_cfg_scale",
        "sigmas",
        "num_images_per_prompt",
        "num_videos_per_prompt",
        *FRAME_COUNTS,
        *FRAME_RATES,
    }
)
"""Parameters that a request sets by a field of its own."""

NEVER_TAKEN = frozenset(
    {
        "self",
        "generator",
        "latents",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "callback",
        "callback_steps",
        "output_type",
        "return_dict",
    }
)
"""Parameters that are the server's business."""

_OPENED = ("image", "video", "audio", "mask", "path", "url", "file", "dir", "embed", "latent")
"""Parts of names of parameters that diffusers might open, or that take tensors."""

_SCALARS = {
    bool: ParameterKind.BOOL,
    int: ParameterKind.INT,
    float: ParameterKind.FLOAT,
    str: ParameterKind.STR,
}
_LISTS = {
    bool: ParameterKind.BOOL_LIST,
    int: ParameterKind.INT_LIST,
    float: ParameterKind.FLOAT_LIST,
    str: ParameterKind.STR_LIST,
}
_LIBRARIES = ("torch", "diffusers", "transformers", "cache-dit", "safetensors", "peft", "ditcast")


def describe(
    pipeline: Pipeline, launch: Launch, source: Source, defaults: GenerationDefaults
) -> Facts:
    """Gather the facts that feed validation and GetCapabilities."""
    extent = find_extent(pipeline.pipe, pipeline.least_arguments())
    pipeline.clean_up(None)
    accelerator = pipeline.accelerator
    device = pipeline.device
    parallelism = launch.acceleration.parallelism
    sharded = parallelism is not None and launch.world_size > 1
    return Facts(
        pipeline_class=type(pipeline.pipe).__name__,
        scheduler_class=_class_name(getattr(pipeline.pipe, "scheduler", None)),
        weights_digest=source.digest,
        model_revision=source.revision,
        components=components_with_weights(pipeline.pipe),
        loading_faults=loading_faults(pipeline.pipe, accelerator),
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        dtype=str(main_dtype(pipeline.pipe)).removeprefix("torch."),
        threads=torch.get_num_threads(),
        library_versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
        parameters=_parameters(pipeline.pipe, pipeline.signature, extent.num_frames),
        transformers=tuple(
            TransformerFact(
                name=entry.name,
                class_name=type(entry.transformer).__name__,
                num_blocks=len(entry.blocks),
                num_heads=getattr(entry.transformer.config, "num_attention_heads", None),
            )
            for entry in accelerator.block_lists
        ),
        size_multiple=_size_multiple(pipeline.pipe, extent),
        shard_multiple=parallelism.equal_parts if parallelism and sharded else 1,
        default_width=extent.width,
        default_height=extent.height,
        num_frames_step=extent.num_frames_step,
        # Known once it has run.
        separate_cfg=SeparateCfg.NEVER,
        guidance_embeds=_guidance_embeds(pipeline.pipe),
        cancellable=pipeline.cancellable,
        makes_videos=_makes_videos(pipeline),
        latents_out=_gives_latents(pipeline.pipe),
        defaults=defaults,
        cache_methods=_cache_methods(pipeline, sharded=sharded),
        parallel_modes=_parallel_modes(pipeline),
        # Kernels of CUDA are only known to repeat themselves where torch is told to insist on it.
        deterministic=device.type == "cpu",
        adapters_supported=pipeline.adapters.supported,
    )


def model_defaults(folder: Path) -> GenerationDefaults:
    """Read `ditcast.yaml` beside `model_index.json`; ConfigError if it is not what it must be."""
    path = folder / "ditcast.yaml"
    if not path.is_file():
        return GenerationDefaults()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        _refuse_unknown(content, {"defaults"})
        defaults = content.get("defaults") or {}
        _refuse_unknown(defaults, set(GenerationDefaults.__dataclass_fields__))
        return msgspec.convert(defaults, GenerationDefaults)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ConfigError((Problem("ditcast.yaml", str(error)),)) from error


def _refuse_unknown(content: object, known: set[str]) -> None:
    """Do not let a misspelt key pass for an unset one."""
    if not isinstance(content, dict):
        raise msgspec.ValidationError("it must be a mapping")
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise msgspec.ValidationError(f"unknown keys {unknown}; known are {sorted(known)}")


def _class_name(component: object) -> str:
    return "" if component is None else type(component).__name__


def _makes_videos(pipeline: Pipeline) -> bool:
    """Say whether outputs have frames, as the first showed; before that, as the signature says."""
    if pipeline.makes_videos is not None:
        return pipeline.makes_videos
    return any(name in pipeline.signature.parameters for name in FRAME_COUNTS)


def _gives_latents(pipe: Any) -> bool:
    """Say whether the call compares its output_type with "latent", as those do that can."""
    return "latent" in inspect.unwrap(type(pipe).__call__).__code__.co_consts


def _picture(name: str, images: dict[str, ImageParameter]) -> ParameterFact:
    return ParameterFact(
        name=name,
        kinds=(images[name].kind,),
        nullable=not images[name].required,
        required=images[name].required,
        default=None,
        in_pipeline_kwargs=False,
    )


def _parameters(
    pipe: Any, signature: inspect.Signature, num_frames: int | None
) -> tuple[ParameterFact, ...]:
    found = []
    images = image_parameters(pipe)
    for name, parameter in signature.parameters.items():
        if name in images:
            found.append(_picture(name, images))
            continue
        kinds, nullable = _kinds(parameter)
        if name in NEVER_TAKEN or not kinds:
            continue
        own = name in OWN_FIELDS
        if not own and any(part in name for part in _OPENED):
            continue
        required = parameter.default is inspect.Parameter.empty
        default = None if required else _plain(parameter.default)
        if name in FRAME_COUNTS and default is None:
            default = num_frames
        found.append(
            ParameterFact(
                name=name,
                kinds=kinds,
                nullable=nullable,
                required=required,
                default=default,
                in_pipeline_kwargs=not own,
            )
        )
    return tuple(found)


def _kinds(parameter: inspect.Parameter) -> tuple[tuple[ParameterKind, ...], bool]:
    """Give the scalar and list types of an annotation, and whether None is one of them."""
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        kind = _SCALARS.get(type(parameter.default))
        return ((kind,) if kind else ()), parameter.default is None
    union = typing.get_origin(annotation) in {typing.Union, types.UnionType}
    members = typing.get_args(annotation) if union else (annotation,)
    kinds: list[ParameterKind] = []
    for member in members:
        if member in _SCALARS:
            kinds.append(_SCALARS[member])
        elif typing.get_origin(member) in {list, tuple}:
            kinds += [_LISTS[item] for item in typing.get_args(member) if item in _LISTS]
    nullable = types.NoneType in members or parameter.default is None
    return tuple(dict.fromkeys(kinds)), nullable


def _plain(default: object) -> Any:
    if isinstance(default, (bool, int, float, str)):
        return default
    if isinstance(default, (list, tuple)) and all(
        isinstance(item, (bool, int, float, str)) for item in default
    ):
        return list(default)
    return None


def _denoiser(pipe: Any) -> Any:
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)


def _patch_size(pipe: Any) -> int:
    """Give the latents to a side of a patch, which is one token; 1 where there are no patches."""
    config = getattr(_denoiser(pipe), "config", None)
    found = getattr(config, "patch_size", None) or getattr(config, "all_patch_size", None) or 1
    return int(found[-1]) if isinstance(found, (list, tuple)) else int(found)


def _size_multiple(pipe: Any, extent: Extent) -> int:
    """Pixels that both sides must be multiples of: for whole tokens, and for the processor."""
    processor = getattr(pipe, "image_processor", None) or getattr(pipe, "video_processor", None)
    own = int(getattr(getattr(processor, "config", None), "vae_scale_factor", 1) or 1)
    latent = extent.latent
    if latent is None and extent.unit is None:
        latent = int(getattr(pipe, "vae_scale_factor", None) or 8)
    return math.lcm(own, extent.unit or 1, latent * _patch_size(pipe) if latent else 1)


def _guidance_embeds(pipe: Any) -> bool | None:
    value = getattr(getattr(_denoiser(pipe), "config", None), "guidance_embeds", None)
    return value if isinstance(value, bool) else None


def _cache_methods(pipeline: Pipeline, *, sharded: bool) -> tuple[Support, ...]:
    kind = type(pipeline.pipe).__name__
    unknown = "" if pipeline.accelerator.cacheable else f"cache-dit does not know {kind}"
    prune = unknown or ("DBPrune cannot prune blocks of a sharded sequence" if sharded else "")
    return (
        Support(name="disabled", possible=True),
        Support(name="db_cache", possible=not unknown, reason=unknown),
        Support(name="db_prune", possible=not prune, reason=prune),
        *(
            Support(name=name, possible=not unknown, reason=unknown)
            for name in ("taylor_seer", "dmd", "foca")
        ),
    )


def _parallel_modes(pipeline: Pipeline) -> tuple[Support, ...]:
    return tuple(
        Support(name=name, possible=not reason, reason=reason)
        for name, reason in pipeline.accelerator.mode_faults().items()
    )
