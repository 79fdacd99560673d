"""Paints many captions with a pipeline folder, through the unmodified pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ditcast_runtime.starter.scenes import Picture

BATCH = 25


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How pictures are painted."""

    steps: int
    negative_prompt: str | None = None
    """None: one pass a step, without true CFG."""
    true_cfg_scale: float = 3.0
    """Without effect where there is no negative prompt."""
    width: int = 128
    """Pixels."""
    height: int = 128
    """Pixels."""

    @property
    def passes(self) -> int:
        """Forward passes in each step."""
        return 1 if self.negative_prompt is None else 2


class Painter:
    """A pipeline that paints."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Painter:
        """Read a pipeline folder, in float32 as the service does on a CPU."""
        pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        return cls(pipe.to(device))

    def paint(
        self,
        prompts: list[str],
        seeds: list[int],
        manner: Manner,
        step_ended: Callable[[], None] | None = None,
    ) -> list[Picture]:
        """Paint each prompt with its seed, many at once, and call `step_ended` after each step.

        A picture painted beside others differs from one painted alone by rounding errors only:
        each has its own noise, and padding is masked.
        """
        pictures: list[Picture] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            pictures += self._paint(prompts[part], seeds[part], manner, step_ended)
        return pictures

    def _paint(
        self,
        prompts: list[str],
        seeds: list[int],
        manner: Manner,
        step_ended: Callable[[], None] | None,
    ) -> list[Picture]:
        def call_back(
            _pipe: Any, _step: int, _time: Any, changes: dict[str, Any]
        ) -> dict[str, Any]:
            if step_ended is not None:
                step_ended()
            return changes

        negative = manner.negative_prompt
        images = self.pipe(
            prompt=prompts,
            negative_prompt=None if negative is None else [negative] * len(prompts),
            true_cfg_scale=1.0 if negative is None else manner.true_cfg_scale,
            width=manner.width,
            height=manner.height,
            num_inference_steps=manner.steps,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=call_back,
        ).images
        return [np.asarray(image) for image in images]
