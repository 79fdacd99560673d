"""Runs the small pipeline in this process, and keeps all that can be seen of it step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from tests.options import tiny

from ditcast_runtime.acceleration import Accelerator
from ditcast_runtime.events import CacheDecision, TransformerDecision
from ditcast_runtime.settings import Acceleration, CacheSettings, Disabled

CPU = torch.device("cpu")
WIDTH = tiny.SIDE
PROMPT = "a red circle"
NEGATIVE = "a blue square"
"""As many tokens as the prompt, 8: two and four ranks can share them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """What one run was."""

    output: torch.Tensor
    decisions: tuple[TransformerDecision, ...]
    """One a step."""
    calls: tuple[tuple[int, ...], ...]
    """The blocks that ran, for each call of the transformer."""
    buffers: dict[str, Any]
    """What the cache kept at the end of the last step, by name."""

    @property
    def computed(self) -> list[int]:
        """Steps, from 1, that computed all blocks."""
        return self._steps("decision", CacheDecision.COMPUTED)

    @property
    def cached(self) -> list[int]:
        """Steps that were reused."""
        return self._steps("decision", CacheDecision.CACHED)

    @property
    def pruned(self) -> list[int]:
        """Steps that skipped blocks."""
        return self._steps("decision", CacheDecision.PRUNED)

    @property
    def cfg_computed(self) -> list[int]:
        """As `computed`, of the pass without the prompt."""
        return self._steps("cfg_decision", CacheDecision.COMPUTED)

    @property
    def cfg_cached(self) -> list[int]:
        """As `cached`, of the pass without the prompt."""
        return self._steps("cfg_decision", CacheDecision.CACHED)

    @property
    def diffs(self) -> list[float | None]:
        """Residual difference of each step."""
        return [each.residual_diff for each in self.decisions]

    def _steps(self, name: str, wanted: CacheDecision) -> list[int]:
        numbered = enumerate(self.decisions, start=1)
        return [step for step, each in numbered if getattr(each, name) is wanted]


class Bench:
    """One pipeline, accelerated."""

    def __init__(
        self, pipe: Any, acceleration: Acceleration | None = None, world_size: int = 1
    ) -> None:
        """Enable what is fixed for a pipeline's life; then `run`."""
        self.pipe = pipe
        self.accelerator = Accelerator(pipe, acceleration or Acceleration(), world_size, CPU)
        self._calls: list[list[int]] = []
        transformer = pipe.transformer
        transformer.register_forward_pre_hook(lambda *_: self._calls.append([]))
        for index, block in enumerate(transformer.transformer_blocks):
            block.register_forward_hook(self._note(index))
        pipe.set_progress_bar_config(disable=True)
        self.accelerator.enable()
        # A sharded pipeline that never ran cannot be switched.
        self.call(2, None)

    def run(
        self,
        cache: CacheSettings,
        steps: int = 12,
        *,
        passes: int = 1,
        output_type: str = "latent",
    ) -> Trace:
        """Switch to settings and run once; the passes are the request's, as the service sees to."""
        if not isinstance(cache.method, Disabled):
            method = msgspec.structs.replace(cache.method, enable_separate_cfg=passes == 2)
            cache = dataclasses.replace(cache, method=method)
        self.accelerator.switch(cache, steps, two_passes=passes == 2)
        decisions: list[TransformerDecision] = []
        buffers: dict[str, Any] = {}

        def step_ended(pipe: Any, *_: Any) -> dict[str, Any]:
            decisions.extend(self.accelerator.decisions())
            manager = getattr(pipe, "_context_manager", None)
            if manager is not None:
                buffers.update(manager.current_context.buffers)
            return {}

        self._calls.clear()
        output = self.call(steps, step_ended, passes=passes, output_type=output_type)
        calls = tuple(tuple(call) for call in self._calls)
        self.accelerator.reset()
        return Trace(output, tuple(decisions), calls, buffers)

    def close(self) -> None:
        """Leave nothing of the cache on the pipeline and its class."""
        self.accelerator.switch(CacheSettings(), 1, two_passes=False)

    def call(
        self,
        steps: int,
        step_ended: Callable[..., dict[str, Any]] | None,
        *,
        passes: int = 2,
        output_type: str = "latent",
    ) -> torch.Tensor:
        """Call the pipeline as it is."""
        output: torch.Tensor = self.pipe(
            prompt=PROMPT,
            negative_prompt=NEGATIVE if passes == 2 else None,
            true_cfg_scale=4.0 if passes == 2 else 1.0,
            width=WIDTH,
            height=tiny.SIDE,
            num_inference_steps=steps,
            generator=torch.Generator("cpu").manual_seed(1),
            callback_on_step_end=step_ended,
            callback_on_step_end_tensor_inputs=[],
            output_type=output_type,
            return_dict=False,
        )[0]
        return output

    def _note(self, index: int) -> Callable[..., None]:
        def ran(*_: Any) -> None:
            self._calls[-1].append(index)

        return ran
