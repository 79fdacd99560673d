"""Tries out, in the warm-up, whether several generations can share a call of the pipeline.

By what it makes and not by its class: two prompts of different lengths in one call have to come out
as they do alone. A pipeline that takes no list of prompts, passes padding off as words or draws its
noise from one generator for all is found out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import safetensors.torch
import structlog

from ditcast_runtime.arguments import batched_arguments, check_inputs
from ditcast_runtime.generation import OutputFormat, OutputOptions, Parameters
from ditcast_runtime.outputs import NoLatents, NotFinite, OtherSize
from ditcast_runtime.passes import Passes
from ditcast_runtime.pipeline import Pipeline

log = structlog.get_logger()

_PROMPTS = ("warm-up", "a warm-up of several words, which is longer than the other by far")

_SHARE = 0.1
"""Of what another prompt changes: so much may a row differ from the same alone. Rounding in float32
is 1e-5 of it, in bfloat16 some 1e-2; padding taken for words is of its size."""


def batch_fault(pipeline: Pipeline, usual: Parameters, *, latents: bool) -> str:
    """Say why generations cannot share a call, for the log and the operator; empty: they can.

    Args:
        pipeline: The pipeline, which ran before and caches nothing yet.
        usual: A generation that is short.
        latents: Whether it can give its latents, which tell more than pixels do.
    """
    form = OutputFormat.LATENT_SAFETENSORS if latents else OutputFormat.RAW_RGB8
    usual = dataclasses.replace(usual, output=OutputOptions(format=form))
    short, long = (dataclasses.replace(usual, prompt=prompt) for prompt in _PROMPTS)
    other_seed = dataclasses.replace(long, seed=usual.seed + 1)
    try:
        alone = [_made(pipeline, [each])[0] for each in (short, other_seed, long)]
        rows = _made(pipeline, [short, other_seed])
        # A shape of its own is a fault as well, which subtraction would tell less well.
        apart = max(_distance(row, own) for row, own in zip(rows, alone[:2], strict=True))
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        return f"the pipeline does not take several prompts: {type(error).__name__}: {error}"[:500]
    except (NoLatents, NotFinite, OtherSize) as error:
        return f"the pipeline makes no sound output of several prompts: {type(error).__name__}"
    finally:
        pipeline.clean_up(None)
    share = apart / max(_distance(alone[0], alone[2]), 1e-12)
    log.info("tried a batch", share=float(f"{share:.2g}"))
    if share > _SHARE:
        return (
            f"with another beside it a generation differs by {share:.2g} of what another prompt"
            " would change"
        )
    return ""


def _made(pipeline: Pipeline, batch: Sequence[Parameters]) -> list[np.ndarray]:
    """Give what one call makes of each."""
    form = batch[0].output.format
    arguments = batched_arguments(pipeline.signature, batch)
    arguments |= pipeline.blanks(batch[0].width, batch[0].height)
    check_inputs(pipeline.pipe, pipeline.signature, arguments)
    made = pipeline.run(arguments, Passes((), 1), form)
    if len(made.outputs) != len(batch):
        raise ValueError(f"of {len(batch)} prompts it made {len(made.outputs)} outputs")
    if form is OutputFormat.LATENT_SAFETENSORS:
        return [_latents(each) for each in made.outputs]
    return [np.frombuffer(each, np.uint8).astype(np.float32) for each in made.outputs]


def _latents(file: bytes) -> np.ndarray:
    return np.asarray(safetensors.torch.load(file)["latents"].float().numpy())


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {first.shape} and {second.shape}")
    return float(np.linalg.norm(first - second))
