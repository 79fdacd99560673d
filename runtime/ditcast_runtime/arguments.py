"""From settled parameters to the keyword arguments of a pipeline's call, by its signature alone."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ditcast_runtime.generation import FRAME_COUNTS, FRAME_RATES, Parameters

SEEDS = 2**64
"""Seeds are taken modulo this, the range of a torch generator."""


def call_arguments(signature: inspect.Signature, parameters: Parameters) -> dict[str, Any]:
    """Give the keyword arguments of the call, as far as its signature takes them."""
    settled: dict[str, Any] = {
        "prompt": parameters.prompt,
        "negative_prompt": parameters.negative_prompt,
        "width": parameters.width,
        "height": parameters.height,
        "num_inference_steps": parameters.num_inference_steps,
        "guidance_scale": parameters.guidance_scale,
        "true_cfg_scale": parameters.true_cfg_scale,
        "num_images_per_prompt": parameters.num_images,
        "num_videos_per_prompt": parameters.num_images,
        **dict.fromkeys(FRAME_COUNTS, parameters.num_frames),
        **dict.fromkeys(FRAME_RATES, _whole_if_it_is(parameters.fps)),
        "sigmas": list(parameters.sigmas) or None,
        "generator": _generators(parameters),
    }
    taken = signature.parameters
    arguments = {
        name: value for name, value in settled.items() if name in taken and value is not None
    }
    return arguments | parameters.pipeline_kwargs


def batched_arguments(signature: inspect.Signature, batch: Sequence[Parameters]) -> dict[str, Any]:
    """Give the arguments of one call that makes a row for each; of one it is that one's own call.

    They differ in prompts and seeds alone. Each row has the generator that it would have by itself,
    so that its noise is the same.
    """
    arguments = call_arguments(signature, batch[0])
    if len(batch) == 1:
        return arguments
    rows = {
        "prompt": [each.prompt for each in batch],
        "negative_prompt": [each.negative_prompt for each in batch],
        "generator": [_generators(each) for each in batch],
    }
    return arguments | {name: row for name, row in rows.items() if name in arguments}


def _whole_if_it_is(rate: float | None) -> float | None:
    """Give an int where there is one: most pipelines annotate it, and some count with it."""
    return int(rate) if rate is not None and rate.is_integer() else rate


def _generators(parameters: Parameters) -> torch.Generator | list[torch.Generator]:
    """Seed one for each output, on the host: the noise must not depend on the device."""
    generators = [
        torch.Generator("cpu").manual_seed((parameters.seed + index) % SEEDS)
        for index in range(parameters.num_images)
    ]
    return generators[0] if parameters.num_images == 1 else generators


def check_inputs(pipe: Any, signature: inspect.Signature, arguments: dict[str, Any]) -> None:
    """Call the pipeline's `check_inputs` with what its `__call__` would pass."""
    check = getattr(pipe, "check_inputs", None)
    if check is None:
        return
    passed: dict[str, Any] = {}
    for name, parameter in inspect.signature(check).parameters.items():
        if name == "callback_on_step_end_tensor_inputs":
            passed[name] = []
        elif name in arguments:
            passed[name] = arguments[name]
        elif name in signature.parameters:
            default = signature.parameters[name].default
            passed[name] = None if default is inspect.Parameter.empty else default
        elif parameter.default is inspect.Parameter.empty:
            # An argument that its __call__ computes: the check cannot be made beforehand.
            return
    check(**passed)
