"""What is wrong with how a model is to be loaded and warmed up, as far as its folder tells.

The rest is found on the ranks, when the pipeline is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ditcast_runtime.config import EngineConfig
from ditcast_runtime.settings import Problem, WarmUp, check_loading, resolve_parallelism
from ditcast_runtime.weights import check_weights, weight_files

_BYTES_PER_PIXEL = 3


def check_start(config: EngineConfig, where: Callable[[str], str]) -> Iterator[Problem]:
    """Find what keeps the model from being loaded and warmed up, under the settings' places.

    Args:
        config: All settings, with the cache-dit file read.
        where: Gives the flag, key or variable that a field came from.
    """
    folder = Path(config.model_source)
    local = (folder / "model_index.json").is_file()
    if local:
        for problem in check_weights(folder, config.variant):
            yield Problem(where(problem.field), problem.reason)
    known = tuple(weight_files(folder, config.variant)) if local else None
    parallelism = resolve_parallelism(config.acceleration.parallelism, config.world_size)
    for problem in check_loading(
        config.loading,
        parallelism=parallelism,
        components=known or None,
        accelerator=config.device != "cpu",
    ):
        yield Problem(where(problem.field.removeprefix("loading.")), problem.reason)
    for asked in config.warm_up:
        for reason in _limits(asked, config):
            yield Problem(where("warm_up"), f"{asked}: {reason}")


def _limits(asked: WarmUp, config: EngineConfig) -> Iterator[str]:
    """Hold a run to what requests are held to; its size is checked again with the model."""
    for side in (asked.width, asked.height):
        if not config.min_side <= side <= config.max_side:
            yield f"{side} is out of range: {config.min_side} to {config.max_side} pixels"
            return
    pixels = asked.width * asked.height
    if pixels > config.max_pixels:
        yield f"it has {pixels} pixels; {config.max_pixels} are allowed"
    size = pixels * (asked.num_frames or 1) * _BYTES_PER_PIXEL
    if size > config.max_bytes_in_flight:
        yield f"it has {size} bytes of pixels; {config.max_bytes_in_flight} may be in flight"
    if not 1 <= (asked.num_frames or 1) <= config.max_frames or asked.num_frames == 0:
        yield f"{asked.num_frames} frames are out of range: 1 to {config.max_frames}"
    if not 1 <= asked.num_inference_steps <= config.max_num_inference_steps:
        yield f"the steps are out of range: 1 to {config.max_num_inference_steps}"
