"""What this pipeline or this machine cannot do: said at the start, with field and reason."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cache_dit import QuantizeBackend
from diffusers import UNet2DConditionModel
from tests.options import control, tiny
from tests.options.proofs import refuses
from tests.options.table import ATTENTION, QUANT_TYPES

from ditcast_runtime.acceleration import Accelerator, support
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.preflight import check_acceleration
from ditcast_runtime.settings import (
    Acceleration,
    CacheSettings,
    DBCache,
    DBPrune,
    ParallelismSettings,
    QuantizeSettings,
    TaylorSeer,
    resolve_parallelism,
)
from ditcast_runtime.settings.attention import CPU_ATTENTION

CPU = torch.device("cpu")
ELSEWHERE = torch.device("cuda")
"""What runs nowhere here: only what is asked before it is touched can be tested."""


@functools.cache
def untouched() -> Any:
    """Give one pipeline that is only looked at."""
    return tiny.pipeline()


def refusals(acceleration: Acceleration, world_size: int = 1, pipe: Any = None) -> dict[str, str]:
    """Give the reasons by field, as a rank finds them before it enables anything."""
    pipe = pipe or untouched()
    lists = Accelerator(pipe, acceleration, world_size, CPU).block_lists
    try:
        check_acceleration(
            acceleration, world_size, type(pipe).__name__, pipe.components, lists, CPU
        )
    except ConfigError as error:
        return {problem.field: problem.reason for problem in error.problems}
    return {}


def of_split(world_size: int, pipe: Any = None, **options: Any) -> dict[str, str]:
    """Give the reasons against a way of splitting."""
    settings = resolve_parallelism(ParallelismSettings(**options), world_size)
    return refusals(Acceleration(parallelism=settings), world_size, pipe)


@refuses(*(f"attention_backend: {name}" for name in ATTENTION if name not in CPU_ATTENTION))
@pytest.mark.parametrize("name", [name for name in ATTENTION if name not in CPU_ATTENTION])
def test_attention_that_does_not_run_here_is_refused(name: str) -> None:
    """By the list on a CPU; by trying it where there is an accelerator, whatever its list says."""
    assert set(refusals(Acceleration(attention_backend=name))) == {"attention_backend"}
    models = (untouched().transformer,)
    reason = support.attention_fault(models, name, CPU)
    assert reason.startswith(f"{name} does not run here: ")


def test_attention_that_cannot_be_exchanged_is_refused() -> None:
    """A model whose attention asks for no implementation would silently keep its own."""
    unet: Any = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=1,
        norm_num_groups=4,
    )
    assert "cannot be exchanged" in support.attention_fault([unet], "native", CPU)


@refuses("quantize.quant_type", *(f"quantize.quant_type: {name}" for name in QUANT_TYPES))
@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_no_kind_of_quantisation_runs_without_cuda_or_its_library(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cache-dit asserts CUDA for each; with it, torchao or its own kernels must be there."""
    asked = Acceleration(quantize=QuantizeSettings(quant_type=kind))
    assert set(refusals(asked)) == {"quantize.quant_type"}
    monkeypatch.setattr(QuantizeBackend, "is_supported", lambda _: False)
    reason = support.quantize_fault(kind, torch.bfloat16, ELSEWHERE)
    assert ("CUDA kernels" if kind.startswith("svdq") else "needs torchao") in reason


@refuses("parallelism.ulysses_float8")
def test_float8_communication_needs_an_accelerator() -> None:
    """Its kernels are Triton's or CuTe's."""
    found = of_split(2, ulysses_degree=2, ulysses_float8=True)
    assert set(found) == {"parallelism.ulysses_float8"}


@refuses("parallelism.ring_rotate_method")
def test_a_ring_by_allgather_is_refused() -> None:
    """cache-dit documents it and raises NotImplementedError."""
    found = of_split(2, ring_degree=2, ring_rotate_method="allgather")
    assert set(found) == {"parallelism.ring_rotate_method"}


@refuses(
    "parallelism.ulysses_degree",
    "parallelism.ring_degree",
    "parallelism.tensor_parallel_degree",
    "parallelism.backend",
)
def test_degrees_that_ranks_or_heads_cannot_share_are_refused() -> None:
    """The product must be the world size, and each degree divide the 4 heads or pad them."""
    assert "world size is 4" in of_split(4, ring_degree=2)["parallelism.ring_degree"]
    assert "4 heads" in of_split(3, ulysses_degree=3)["parallelism.ulysses_degree"]
    tensor = of_split(3, tensor_parallel_degree=3)
    assert "4 heads" in tensor["parallelism.tensor_parallel_degree"]
    assert set(of_split(2, ulysses_degree=2, backend="Native_PyTorch")) == {"parallelism.backend"}


@refuses("parallelism.ulysses_anything", "parallelism.ulysses_async")
def test_modes_of_ulysses_are_refused_without_it() -> None:
    """Nor does a ring take lengths of any kind."""
    mixed = of_split(4, ulysses_degree=2, ring_degree=2, ulysses_anything=True)
    assert set(mixed) == {"parallelism.ulysses_anything"}
    assert set(of_split(2, ring_degree=2, ulysses_async=True)) == {"parallelism.ulysses_async"}


@refuses("parallelism.attention_backend")
def test_a_split_sequence_takes_only_attention_that_can_be_split() -> None:
    """Of those that run on a CPU, `native`."""
    found = of_split(2, ulysses_degree=2, attention_backend="_native_math")
    assert "context parallelism" in found["parallelism.attention_backend"]
    assert of_split(2, ulysses_degree=2, attention_backend="native") == {}


@refuses("parallelism.extra_parallel_modules")
def test_modules_that_cache_dit_would_skip_are_refused() -> None:
    """Absent, without a plan, or with heads that so many ranks cannot share."""
    field = "parallelism.extra_parallel_modules"

    def reason(world_size: int, module: str, pipe: Any = None, **options: Any) -> str:
        options = options or {"ulysses_degree": world_size}
        return of_split(world_size, pipe, extra_parallel_modules=(module,), **options)[field]

    assert "no controlnet" in reason(2, "controlnet")
    assert "2 num_key_value_heads" in reason(4, "text_encoder")
    pipe = tiny.pipeline()
    pipe.vae = torch.nn.Identity()
    pipe.register_to_config(vae=("torch.nn", "Identity"))
    assert "cannot split Identity" in reason(2, "vae", pipe)
    with_control = control.pipeline()
    tensor = {"tensor_parallel_degree": 2, "ulysses_degree": 1}
    assert "tensor_parallel_degree" in reason(2, "controlnet", with_control, **tensor)


def test_classes_that_cache_dit_has_no_plan_for_are_refused() -> None:
    """Each way of splitting says so of the class, in GetCapabilities as at the start."""
    assert support.context_fault([torch.nn.Identity()]).endswith("the sequence of Identity")
    assert support.tensor_fault([torch.nn.Identity()]).endswith("the weights of Identity")
    assert support.async_fault([torch.nn.Identity()]).endswith("Ulysses for Identity")
    faults = Accelerator(untouched(), Acceleration(), 2, CPU).mode_faults()
    assert {name for name, reason in faults.items() if reason} == {"controlnet", "ulysses_float8"}


@refuses(
    "cache.db_prune.max_accumulated_residual_diff_threshold",
    "cache.db_prune.cfg_diff_compute_separate",
    "cache.db_prune.cfg_compute_first",
)
def test_what_pruning_cannot_do_is_refused() -> None:
    """It keeps no sum, judges each pass by itself, and cannot prune a sharded sequence."""
    method = DBPrune(
        fn_compute_blocks=1,
        max_accumulated_residual_diff_threshold=0.5,
        cfg_diff_compute_separate=False,
        cfg_compute_first=True,
    )
    assert set(refusals(Acceleration(cache=CacheSettings(method=method)))) == {
        "cache.db_prune.max_accumulated_residual_diff_threshold",
        "cache.db_prune.cfg_diff_compute_separate",
    }
    first = DBPrune(fn_compute_blocks=1, cfg_compute_first=True)
    assert set(refusals(Acceleration(cache=CacheSettings(method=first)))) == {
        "cache.db_prune.cfg_compute_first"
    }
    sharded = Acceleration(
        cache=CacheSettings(method=DBPrune(fn_compute_blocks=1)),
        parallelism=resolve_parallelism(ParallelismSettings(ulysses_degree=2), 2),
    )
    assert set(refusals(sharded, 2)) == {"cache.db_prune"}


def test_all_that_is_wrong_is_said_at_once() -> None:
    """Blocks, a calibrator, quantisation and attention: four fields, one refusal."""
    asked = Acceleration(
        cache=CacheSettings(
            method=DBCache(fn_compute_blocks=tiny.BLOCKS + 1),
            calibrator=TaylorSeer(taylorseer_order=9),
        ),
        quantize=QuantizeSettings(quant_type="int8_weight_only"),
        attention_backend="sage3",
    )
    assert set(refusals(asked)) == {
        "cache.db_cache.fn_compute_blocks",
        "cache.taylor_seer.taylorseer_order",
        "quantize.quant_type",
        "attention_backend",
    }
