"""What needs an accelerator: at least it reaches cache-dit's own objects as it was meant."""

from __future__ import annotations

import dataclasses
from typing import Any

import cache_dit
import pytest
from cache_dit import QuantizeBackend
from tests.options.proofs import hands_over
from tests.options.table import QUANT_TYPES

from ditcast_runtime.settings import (
    ComponentQuantization,
    ParallelismSettings,
    QuantizeSettings,
    SvdqKwargs,
    parallelism_options,
    quantize_options,
    resolve_parallelism,
)

OTHER_VALUES: dict[str, Any] = {
    "backend": "TORCHAO",
    "quant_type": "int8_weight_only",
    "exclude_layers": ("proj_out",),
    "regional_quantize": False,
    "repeated_blocks": ("Block",),
    "components_to_quantize": (
        ComponentQuantization(component="text_encoder", quant_type="float8_weight_only"),
    ),
    "per_tensor_fallback": False,
    "precision_plan": (("attn", "float8_per_tensor"),),
    "verbose": True,
}
"""A value of each option that is not its default; `serialize_to` is the svdq kinds'."""


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let cache-dit believe that torchao and its own kernels are there."""
    monkeypatch.setattr(QuantizeBackend, "is_supported", lambda _: True)


def made(settings: QuantizeSettings) -> Any:
    """Make cache-dit's own configuration, as the accelerator does."""
    options: dict[str, Any] = quantize_options(settings)
    return cache_dit.QuantizeConfig(**options)


@hands_over(*(f"quantize.quant_type: {kind}" for kind in QUANT_TYPES), "quantize.quant_type")
@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_each_kind_of_quantisation_reaches_the_library_that_does_it(kind: str) -> None:
    """torchao, or cache-dit itself for the kinds of singular values."""
    config = made(QuantizeSettings(quant_type=kind))
    own = kind.startswith("svdq")
    assert config.quant_type == kind
    assert config.backend is (QuantizeBackend.CACHE_DIT if own else QuantizeBackend.TORCHAO)


@hands_over(*(f"quantize.{name}" for name in OTHER_VALUES))
def test_every_option_of_quantisation_arrives() -> None:
    """Under cache-dit's names, with its lists and mappings."""
    config = made(QuantizeSettings(**OTHER_VALUES))
    assert config.backend is QuantizeBackend.TORCHAO
    assert config.quant_type == "int8_weight_only"
    assert config.exclude_layers == ["proj_out"]
    assert config.regional_quantize is config.per_tensor_fallback is False
    assert config.repeated_blocks == ["Block"]
    assert config.components_to_quantize == {"text_encoder": {"quant_type": "float8_weight_only"}}
    assert config.precision_plan == {"attn": "float8_per_tensor"}
    assert config.verbose is True


@hands_over(
    "quantize.serialize_to",
    "quantize.svdq_kwargs",
    *(f"quantize.svdq_kwargs.{field.name}" for field in dataclasses.fields(SvdqKwargs)),
)
def test_every_option_of_the_kinds_of_singular_values_arrives(tmp_path: Any) -> None:
    """Each with another value than its default, and cache-dit takes them all."""
    words: dict[str, Any] = {
        "calibrate_precision": "high",
        "runtime_kernel": "v2",
        "quantize_device": "cuda",
        "smooth_strategy": "few_shot",
        "few_shot_relax_strategy": "rank",
        "few_shot_relax_top_ratio": 0.5,
        "few_shot_relax_factor": 2.0,
    }
    for field in dataclasses.fields(SvdqKwargs):
        if field.name not in words:
            words[field.name] = not field.default if isinstance(field.default, bool) else 3
    kwargs = SvdqKwargs(**words)
    settings = QuantizeSettings(
        quant_type="svdq_int4_r32_dq", svdq_kwargs=kwargs, serialize_to=str(tmp_path)
    )
    config = made(settings)
    assert config.svdq_kwargs == dataclasses.asdict(kwargs)
    assert config.serialize_to == str(tmp_path / "svdq_int4_r32_dq.safetensors")


@hands_over("parallelism.ulysses_float8")
def test_float8_communication_arrives() -> None:
    """Off unless it is asked for."""
    for asked in (False, True):
        settings = ParallelismSettings(ulysses_degree=2, ulysses_float8=asked)
        options: dict[str, Any] = parallelism_options(resolve_parallelism(settings, 2))
        assert cache_dit.ParallelismConfig(**options).ulysses_float8 is asked
