"""The pipeline called directly, with nothing of ditcast: `python -m benchmarks.direct`.

Reads one request a line, calls the pipeline, and writes how long that took. It is what a script
of a user would be, with cache-dit enabled as its documentation says.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from typing import Any

import cache_dit
import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from benchmarks.plan import PROMPT, SIDE
from benchmarks.processes import DirectAnswer, DirectRequest
from ditcast_runtime.config import STARTER_MODEL


class _Caching:
    """The cache of a pipeline, switched only where a request wants another than the last."""

    def __init__(self, pipe: Any) -> None:  # noqa: ANN401 - diffusers says no types
        self._pipe = pipe
        self._file = ""

    def set(self, file: str) -> None:
        if file == self._file:
            return
        if self._file:
            cache_dit.disable_cache(self._pipe)
        if file:
            options: Any = cache_dit.load_configs(file)
            cache_dit.enable_cache(self._pipe, **options)
        self._file = file


def main() -> None:
    """Load, call once, say so, and then answer requests until there are none."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    diffusers.utils.logging.disable_progress_bar()
    pipe: Any = DiffusionPipeline.from_pretrained(STARTER_MODEL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe(prompt=PROMPT, width=SIDE, height=SIDE, num_inference_steps=2)
    print("ready", flush=True)
    caching = _Caching(pipe)
    for line in sys.stdin:
        request = DirectRequest(**json.loads(line))
        caching.set(request.cache)
        answer = _call(pipe, request)
        fields = {name: getattr(answer, name) for name in DirectAnswer.__slots__}
        print(json.dumps(fields), flush=True)


def _call(pipe: Any, request: DirectRequest) -> DirectAnswer:  # noqa: ANN401 - as above
    began = time.perf_counter()
    pictures = pipe(
        prompt=list(request.prompts),
        negative_prompt=[request.negative_prompt] * len(request.prompts),
        true_cfg_scale=request.true_cfg_scale,
        width=request.side,
        height=request.side,
        num_inference_steps=request.steps,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in request.seeds],
    ).images
    seconds = time.perf_counter() - began
    return DirectAnswer(
        seconds=seconds,
        sha256=tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
