"""The runs before the rank says that it is ready, and the switch to the configured cache."""

from __future__ import annotations

import dataclasses
import time

import msgspec
import structlog
import torch

from ditcast_runtime.arguments import call_arguments
from ditcast_runtime.batch_trial import batch_fault
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.execution import two_passes
from ditcast_runtime.generation import OutputFormat, OutputOptions, Parameters, SeparateCfg
from ditcast_runtime.launches import Launch
from ditcast_runtime.messages import Facts
from ditcast_runtime.outputs import NotFinite, OtherSize
from ditcast_runtime.passes import Passes
from ditcast_runtime.pipeline import Pipeline
from ditcast_runtime.settings import Compile, Disabled, Problem, WarmUp

log = structlog.get_logger()

_WARM_UP_STEPS = 2

_TOLD_APART = 2
"""Passes of a step that cache-dit can tell apart."""


def warm_up(pipeline: Pipeline, launch: Launch, found: Facts) -> Facts:
    """Run once, switch to the configured cache, and run what was asked for.

    With two passes where there can be two: what a first pass allocates or compiles should not
    count for the first generation.

    Returns:
        The facts, with what only a run tells.
    """
    _check_asked(launch, found)
    if not pipeline.accelerator.cacheable:
        log.warning(
            "served without a cache", cause=f"cache-dit does not know {found.pipeline_class}"
        )
    parameters = _parameters(pipeline, launch, found)
    passes = 1
    for prompt in _warm_up_prompts(launch):
        changed = dataclasses.replace(parameters, prompt=prompt)
        passes = _run(pipeline, changed, launch, found)
    rule = SeparateCfg.NEVER if passes == 1 else _separate_cfg(pipeline, parameters, launch, found)
    videos = found.makes_videos if pipeline.makes_videos is None else pipeline.makes_videos
    found = msgspec.structs.replace(found, separate_cfg=rule, makes_videos=videos)
    if passes > _TOLD_APART:
        found = _uncached(found, passes)
    if launch.batches:
        fault = batch_fault(pipeline, parameters, latents=found.latents_out)
        found = msgspec.structs.replace(found, batch_fault=fault)
    steps = _usual_steps(launch, found)
    two = two_passes(found.separate_cfg, parameters)
    pipeline.accelerator.switch(parameters.cache, steps, two_passes=two)
    for asked in launch.warm_up:
        changed = dataclasses.replace(
            parameters,
            width=asked.width,
            height=asked.height,
            num_frames=asked.num_frames,
            num_inference_steps=asked.num_inference_steps,
        )
        _run(pipeline, changed, launch, found, field="warm_up")
    return found


def _parameters(pipeline: Pipeline, launch: Launch, found: Facts) -> Parameters:
    """Ask for the usual size, for the shortest video, and for all the guidance there is."""
    width, height = _warm_up_size(found)
    taken = pipeline.signature.parameters
    return Parameters(
        prompt="warm-up",
        negative_prompt="" if "negative_prompt" in taken else None,
        width=width,
        height=height,
        num_inference_steps=_WARM_UP_STEPS,
        guidance_scale=5.0 if "guidance_scale" in taken else None,
        true_cfg_scale=4.0 if "true_cfg_scale" in taken else None,
        seed=0,
        num_images=1,
        num_frames=1 + found.num_frames_step if found.makes_videos else None,
        sigmas=(),
        pipeline_kwargs={},
        output=OutputOptions(),
        cache=launch.acceleration.cache,
    )


def _separate_cfg(
    pipeline: Pipeline, parameters: Parameters, launch: Launch, found: Facts
) -> SeparateCfg:
    """Find what makes the pipeline run its transformer again in each step, by leaving it out."""
    if parameters.true_cfg_scale is None:
        rule = SeparateCfg.GUIDANCE
        changed = dataclasses.replace(parameters, guidance_scale=1.0)
    else:
        rule = SeparateCfg.TRUE_CFG
        changed = dataclasses.replace(parameters, negative_prompt=None, true_cfg_scale=1.0)
    if found.latents_out:
        # What is decoded is of no interest here.
        output = OutputOptions(format=OutputFormat.LATENT_SAFETENSORS)
        changed = dataclasses.replace(changed, output=output)
    return rule if _run(pipeline, changed, launch, found) == 1 else SeparateCfg.ALWAYS


def _uncached(found: Facts, passes: int) -> Facts:
    """Say that no cache is possible: cache-dit would take one pass for the next step."""
    reason = f"the pipeline runs its transformer {passes} times a step, cache-dit tells two apart"
    methods = tuple(
        method
        if method.name == "disabled"
        else msgspec.structs.replace(method, possible=False, reason=reason)
        for method in found.cache_methods
    )
    return msgspec.structs.replace(found, cache_methods=methods)


def _run(
    pipeline: Pipeline,
    parameters: Parameters,
    launch: Launch,
    found: Facts,
    *,
    field: str = "model",
) -> int:
    """Run once, tell the log how long it took, and count the passes of a step.

    `field` is what is at fault if it cannot.
    """
    began = time.monotonic()
    arguments = call_arguments(pipeline.signature, parameters)
    arguments |= pipeline.blanks(parameters.width, parameters.height)
    passes = Passes(pipeline.accelerator.transformers, parameters.num_inference_steps)
    try:
        with passes.counted():
            pipeline.run(arguments, passes, parameters.output.format)
    except AssertionError as error:
        raise ConfigError((_unsharded(launch, str(error)),)) from error
    except NotFinite as error:
        reason = f"in {found.dtype} it puts out NaN or infinity, in the warm-up already"
        raise ConfigError((Problem("model", reason),)) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if launch.loading.component_dtypes:
            # Some pipelines hand tensors of one component to another as they are.
            reason = f"the pipeline does not run with these number types: {error}"
            raise ConfigError((Problem("loading.component_dtypes", reason),)) from error
        if launch.world_size > 1 or launch.epoch > 1:
            # Another rank may be what failed; and what ran before may run again.
            raise
        size = f"{parameters.width}x{parameters.height}"
        reason = f"the pipeline does not run at {size}, in the warm-up already: {error}"
        raise ConfigError((Problem(field, reason),)) from error
    except OtherSize as error:
        log.warning("warmed up at another size", cause=str(error))
    pipeline.clean_up(None)
    parallelism = launch.acceleration.parallelism
    if passes.masked and parallelism is not None and parallelism.context_parallel_degree > 1:
        # Each rank's parts of text and picture come to lie in another order than the mask's.
        reason = "cache-dit does not split the mask that the transformer gets over text and picture"
        raise ConfigError((Problem("parallelism", reason, "unsupported"),))
    run = WarmUp(
        parameters.width,
        parameters.height,
        parameters.num_frames,
        parameters.num_inference_steps,
    )
    seconds = round(time.monotonic() - began, 3)
    log.info("warmed up", run=str(run), seconds=seconds, passes=passes.most)
    return passes.most


def _check_asked(launch: Launch, found: Facts) -> None:
    """Refuse sizes that this model cannot make, or that its ranks cannot share."""
    problems = [
        Problem("warm_up", f"{asked}: {reason}")
        for asked in launch.warm_up
        if (reason := _misfit(asked, found))
    ]
    if problems:
        raise ConfigError(tuple(problems))


def _misfit(asked: WarmUp, found: Facts) -> str:
    unit = found.size_multiple
    if asked.width % unit or asked.height % unit:
        return f"both sides must be multiples of {unit} pixels for this model"
    tokens = (asked.width // unit) * (asked.height // unit)
    if tokens % found.shard_multiple:
        parts = f"{found.shard_multiple} equal parts"
        return f"it has {tokens} image tokens, which the ranks cannot split into {parts}"
    if asked.num_frames is not None and not found.makes_videos:
        return "the model makes no videos"
    return ""


def _warm_up_prompts(launch: Launch) -> list[str]:
    """Give one prompt; where only some lengths can be sharded, one for each remainder.

    A pipeline whose prompts vary in length then shows at the start that plain sharding is not for
    it, instead of at the first prompt of the wrong length.
    """
    parallelism = launch.acceleration.parallelism
    if parallelism is None or parallelism.ulysses_anything:
        # Two lengths: the second one is when torch.compile learns that lengths vary.
        longer = [] if launch.loading.compile is Compile.NONE else ["warm-up of another length"]
        return ["warm-up", *longer]
    return ["a" + " a" * extra for extra in range(parallelism.context_parallel_degree)]


def _unsharded(launch: Launch, reason: str) -> Problem:
    parallelism = launch.acceleration.parallelism
    if parallelism is None or parallelism.ulysses_anything:
        return Problem("model", f"the warm-up failed: {reason}")
    degree = parallelism.context_parallel_degree
    lengths = (
        f"prompts of this pipeline vary in length, and {degree} ranks cannot share every length"
    )
    if parallelism.ring_degree > 1:
        return Problem("parallelism.ring_degree", f"{lengths} by a ring: use Ulysses ({reason})")
    return Problem(
        "parallelism.ulysses_anything", f"{lengths} without it; leave it unset ({reason})"
    )


def _usual_steps(launch: Launch, found: Facts) -> int:
    """Give a number of steps for which the configured cache can be applied."""
    method = launch.acceleration.cache.method
    mask = None if isinstance(method, Disabled) else method.steps_computation_mask
    if isinstance(mask, tuple):
        return len(mask)
    defaults = {fact.name: fact.default for fact in found.parameters}
    own = defaults.get("num_inference_steps")
    return found.defaults.num_inference_steps or (own if isinstance(own, int) else 50)


def _warm_up_size(found: Facts) -> tuple[int, int]:
    """Give the default size, made one that the group can shard: its width is what gives way."""
    unit = found.size_multiple
    width = found.defaults.width or found.default_width or 512
    height = found.defaults.height or found.default_height or 512
    columns, rows = max(1, width // unit), max(1, height // unit)
    while (columns * rows) % found.shard_multiple:
        columns += 1
    return columns * unit, rows * unit
