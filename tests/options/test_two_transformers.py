"""One transformer after the other, as in Wan 2.2: one setting for both, each with its own cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from tests.options.proofs import proves

from ditcast_runtime.acceleration import Accelerator
from ditcast_runtime.events import CacheDecision, TransformerDecision
from ditcast_runtime.settings import Acceleration, CacheSettings, DBCache

STEPS = 12
Run = Callable[..., list[TransformerDecision]]


def transformer() -> WanTransformer3DModel:
    """Make one of noise."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=64,
    )


@pytest.fixture(scope="module")
def pipe() -> Any:
    """Give a pipeline with two transformers and no text encoder."""
    torch.manual_seed(0)
    absent: Any = None
    made: Any = WanPipeline(
        tokenizer=absent,
        text_encoder=absent,
        vae=AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformer(),
        transformer_2=transformer(),
        boundary_ratio=0.75,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def run(pipe: Any) -> Iterator[Run]:
    """Give a function that runs once with settings; one decision a step."""
    # diffusers takes the last choice for that of all pipelines that made none.
    before, _ = _AttentionBackendRegistry.get_active_backend()
    accelerator = Accelerator(
        pipe, Acceleration(attention_backend="_native_math"), 1, torch.device("cpu")
    )
    accelerator.enable()

    def once(**options: Any) -> list[TransformerDecision]:
        usual = {"fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 1.0}
        method = DBCache(**usual | options, enable_separate_cfg=False)
        accelerator.switch(CacheSettings(method=method), STEPS, two_passes=False)
        decisions: list[TransformerDecision] = []

        def step_ended(*_: Any) -> dict[str, Any]:
            [decision] = accelerator.decisions()
            decisions.append(decision)
            return {}

        pipe(
            prompt_embeds=torch.zeros(1, 8, 32),
            guidance_scale=1.0,
            height=32,
            width=32,
            num_frames=1,
            num_inference_steps=STEPS,
            generator=torch.Generator("cpu").manual_seed(0),
            callback_on_step_end=step_ended,
            callback_on_step_end_tensor_inputs=[],
            output_type="latent",
        )
        accelerator.reset()
        assert len(decisions) == STEPS
        return decisions

    yield once
    accelerator.switch(CacheSettings(), STEPS, two_passes=False)
    _AttentionBackendRegistry.set_active_backend(before)


def computed(decisions: list[TransformerDecision]) -> list[int]:
    """Give the steps that were computed, from 1."""
    numbered = enumerate(decisions, start=1)
    return [step for step, each in numbered if each.decision is CacheDecision.COMPUTED]


def takes_over(decisions: list[TransformerDecision]) -> int:
    """Give the first step of the second transformer, from 1."""
    names = [each.name for each in decisions]
    first = names.index("transformer_2")
    assert names == ["transformer"] * first + ["transformer_2"] * (STEPS - first)
    assert 2 < first < STEPS - 3
    return first + 1


@proves("cache.db_cache.max_warmup_steps")
def test_each_transformer_has_first_steps_of_its_own(run: Run) -> None:
    """The second has nothing to reuse when it takes over."""
    decisions = run()
    second = takes_over(decisions)
    assert computed(decisions) == [1, 2, second, second + 1]


@proves("cache.db_cache.steps_computation_mask")
def test_a_mask_counts_the_steps_of_the_generation(run: Run) -> None:
    """The second transformer goes on with it where the first stopped, each time anew."""
    for mask in ((1, 0) * 6, (1, 0, 0) * 4, (1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)):
        decisions = run(steps_computation_mask=mask, steps_computation_policy="static")
        asked = {step for step, value in enumerate(mask, start=1) if value}
        assert computed(decisions) == sorted({*asked, takes_over(decisions)})


@proves("cache.db_cache.force_refresh_step_hint")
def test_a_fresh_start_leaves_each_decision_with_its_transformer(run: Run) -> None:
    """A context that starts afresh moves behind the other, and is still told from it."""
    decisions = run(force_refresh_step_hint=3, force_refresh_step_policy="once")
    second = takes_over(decisions)
    of_second = [second, second + 1, second + 3, second + 4]
    of_first = [step for step in (1, 2, 4, 5) if step < second]
    assert computed(decisions) == [*of_first, *(step for step in of_second if step <= STEPS)]


def test_both_transformers_get_the_attention_that_is_asked_for(pipe: Any, run: Run) -> None:
    """cache-dit alone would leave the second as it is."""
    for model in (pipe.transformer, pipe.transformer_2):
        assert {block.attn1.processor._attention_backend for block in model.blocks} == {
            "_native_math"
        }
