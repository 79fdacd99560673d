"""Calls pipelines directly: `python -m tests.kinds.direct MODELS OUT THREADS NAME...`.

With the settings and the number of threads that the server has; the cache is enabled by the code
that the ranks enable it with. Writes the pixels of each into a file of its name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import DiffusionPipeline
from tests.kinds.kinds import BY_NAME, PROMPT, SEED, STEPS, Kind
from tests.kinds.picture import picture

from ditcast_runtime.acceleration import Accelerator
from ditcast_runtime.settings import Acceleration, CacheSettings, DBCache

CPU = torch.device("cpu")


def call(kind: Kind) -> dict[str, Any]:
    """Give the arguments of the call, each by hand."""
    arguments: dict[str, Any] = {
        "prompt": PROMPT,
        "width": kind.width,
        "height": kind.height,
        "num_inference_steps": STEPS,
        "generator": torch.Generator("cpu").manual_seed(SEED),
        "output_type": "pt",
        **kind.kwargs,
    }
    for name in ("num_frames", "guidance_scale", "true_cfg_scale", "negative_prompt"):
        if (value := getattr(kind, name)) is not None:
            arguments[name] = value
    if kind.pictures:
        pictures = [picture(number) for number in range(kind.pictures)]
        arguments["image"] = pictures if kind.pictures > 1 else pictures[0]
    return arguments


def pixels(folder: Path, kind: Kind) -> bytes:
    """Load the pipeline, cache as the server does, and give what it makes."""
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    method = msgspec.convert({**kind.cache, "enable_separate_cfg": kind.passes > 1}, DBCache)
    settings = CacheSettings(method=method)
    accelerator = Accelerator(pipe, Acceleration(cache=settings), 1, CPU)
    accelerator.enable()
    accelerator.switch(settings, STEPS, two_passes=kind.passes > 1)
    # As ranks warm up: the first call of a process rounds otherwise now and then.
    pipe(**call(kind))
    accelerator.reset()
    made = pipe(**call(kind))
    images: torch.Tensor = made.images if kind.num_frames is None else made.frames
    levels = (images.float() * 255).round().to(torch.uint8).movedim(-3, -1)
    return levels.contiguous().numpy().tobytes()


def main() -> None:
    """Call each."""
    models, out, threads, *names = sys.argv[1:]
    torch.set_num_threads(int(threads))
    for name in names:
        made = pixels(Path(models) / name, BY_NAME[name])
        (Path(out) / name).write_bytes(made)


if __name__ == "__main__":
    main()
