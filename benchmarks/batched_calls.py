"""Calls with several prompts against as many with one: `python -m benchmarks.batched_calls`.

Nothing of ditcast runs here: it is what batching could give at best, and what it does to pictures.
Writes a line of JSON for each pair.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cache_dit
import diffusers
import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from benchmarks.plan import NEGATIVE_PROMPT, REFERENCE_CACHE, SIDE, TRUE_CFG_SCALE
from ditcast_runtime.config import STARTER_MODEL

_PROMPTS = (
    "a large red circle left of a small blue square on a yellow background",
    "a green triangle",
    "a small white square above a large purple circle on a black background",
    "a blue circle on a white background",
    "a large orange triangle right of a small green circle",
    "a red square",
    "a small yellow circle below a large blue triangle on a red background",
    "a purple square on a green background",
)
"""Of several lengths, as what waits together has."""


@dataclass(frozen=True, slots=True)
class _Call:
    """How one call went, or several one after the other."""

    seconds: float
    cpu_seconds: float
    pictures: np.ndarray
    cached_steps: list[int]
    """Of each call: steps that the cache took."""


def _call(pipe: Any, numbers: range, steps: int) -> _Call:  # noqa: ANN401 - diffusers says no types
    """Make the pictures of these numbers in one call."""
    cached = 0

    def count(_: object, step: int, *__: object) -> dict[str, object]:
        nonlocal cached
        context = getattr(pipe, "_context_manager", None)
        if step == steps - 1 and context is not None:
            cached = len(context._current_context.get_cached_steps())  # noqa: SLF001 - as `decisions` does
        return {}

    began, cpu_began = time.perf_counter(), time.process_time()
    made = pipe(
        prompt=[_PROMPTS[number % len(_PROMPTS)] for number in numbers],
        negative_prompt=[NEGATIVE_PROMPT] * len(numbers),
        true_cfg_scale=TRUE_CFG_SCALE,
        width=SIDE,
        height=SIDE,
        num_inference_steps=steps,
        generator=[torch.Generator("cpu").manual_seed(number) for number in numbers],
        output_type="np",
        callback_on_step_end=count,
    ).images
    cpu_seconds = time.process_time() - cpu_began
    return _Call(time.perf_counter() - began, cpu_seconds, made, [cached])


def _apart(pipe: Any, numbers: range, steps: int) -> _Call:  # noqa: ANN401 - as above
    calls = [_call(pipe, range(number, number + 1), steps) for number in numbers]
    return _Call(
        sum(call.seconds for call in calls),
        sum(call.cpu_seconds for call in calls),
        np.concatenate([call.pictures for call in calls]),
        [steps for call in calls for steps in call.cached_steps],
    )


def _pairs(pipe: Any, size: int, steps: int, count: int) -> Iterator[dict[str, object]]:  # noqa: ANN401
    for pair in range(count):
        numbers = range(pair * size, (pair + 1) * size)
        ways = [_call, _apart] if pair % 2 else [_apart, _call]
        made = {way: way(pipe, numbers, steps) for way in ways}
        together, apart = made[_call], made[_apart]
        levels = np.abs(together.pictures - apart.pictures).max() * 255
        yield {
            "together": together.seconds,
            "apart": apart.seconds,
            "together_cpu": together.cpu_seconds,
            "apart_cpu": apart.cpu_seconds,
            "levels": float(levels),
            "cached_together": together.cached_steps[0],
            "cached_apart": apart.cached_steps,
        }


def main() -> None:
    """Load, call once, and measure all that was asked for."""
    arguments = _parser().parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    diffusers.utils.logging.disable_progress_bar()
    pipe: Any = DiffusionPipeline.from_pretrained(STARTER_MODEL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    _call(pipe, range(1), 2)
    for cached in (False, True):
        if cached:
            options: Any = cache_dit.load_configs(str(REFERENCE_CACHE))
            cache_dit.enable_cache(pipe, **options)
        for steps in arguments.steps:
            for size in arguments.sizes:
                of = {"cached": cached, "steps": steps, "size": size}
                for pair in _pairs(pipe, size, steps, arguments.pairs):
                    print(json.dumps(of | pair), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", default=[20])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    return parser


if __name__ == "__main__":
    main()
