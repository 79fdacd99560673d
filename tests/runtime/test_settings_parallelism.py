"""The arithmetic of ranks, attention implementations and quantisation: what passes, what not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditcast_runtime.settings import (
    AUTO_DEGREE,
    ComponentQuantization,
    ParallelismSettings,
    Problem,
    QuantizeSettings,
    SvdqKwargs,
    check_attention_backend,
    check_parallelism,
    check_quantize,
    parallelism_options,
    quantize_options,
    resolve_parallelism,
)

HEADS = {"transformer": 24}
DEGREE = st.integers(1, 8)


def fields(problems: tuple[Problem, ...]) -> list[str]:
    """Give the paths of what is wrong."""
    return [problem.field for problem in problems]


@pytest.mark.parametrize(
    ("settings", "world_size", "degrees", "anything"),
    [
        (None, 1, (1, 1, 1), False),
        (None, 4, (4, 1, 1), True),
        (ParallelismSettings(), 1, (1, 1, 1), False),
        (ParallelismSettings(), 4, (1, 1, 1), False),
        (ParallelismSettings(ulysses_degree=2), 2, (2, 1, 1), True),
        (ParallelismSettings(ulysses_degree=2, ulysses_anything=False), 2, (2, 1, 1), False),
        (ParallelismSettings(ulysses_degree=2, ring_degree=2), 4, (2, 2, 1), False),
        (ParallelismSettings(ulysses_degree=AUTO_DEGREE), 4, (4, 1, 1), True),
        (ParallelismSettings(ring_degree=AUTO_DEGREE), 4, (1, 4, 1), False),
        (
            ParallelismSettings(tensor_parallel_degree=AUTO_DEGREE, ulysses_degree=2),
            4,
            (2, 1, 2),
            True,
        ),
        (
            ParallelismSettings(ulysses_degree=AUTO_DEGREE, tensor_parallel_degree=8),
            4,
            (1, 1, 8),
            False,
        ),
    ],
)
def test_resolution(
    settings: ParallelismSettings | None,
    world_size: int,
    degrees: tuple[int, int, int],
    *,
    anything: bool,
) -> None:
    """What was left open becomes Ulysses over what the other degrees leave, for any length."""
    resolved = resolve_parallelism(settings, world_size)
    assert degrees == (
        resolved.ulysses_degree,
        resolved.ring_degree,
        resolved.tensor_parallel_degree,
    )
    assert resolved.ulysses_anything is anything


@given(DEGREE, DEGREE, DEGREE, st.sampled_from(range(3)))
def test_auto_fits_wherever_it_can(ulysses: int, ring: int, tensor: int, which: int) -> None:
    """One auto degree of three always gives back the product that the world size was made of."""
    degrees = [ulysses, ring, tensor]
    world_size = math.prod(degrees)
    degrees[which] = AUTO_DEGREE
    settings = ParallelismSettings(
        ulysses_degree=degrees[0], ring_degree=degrees[1], tensor_parallel_degree=degrees[2]
    )
    resolved = resolve_parallelism(settings, world_size)
    assert resolved.world_size == world_size
    assert resolved.context_parallel_degree == ulysses * ring
    assert resolve_parallelism(resolved, world_size) == resolved
    assert not check_parallelism(settings, world_size=world_size)


def test_an_auto_degree_is_no_number() -> None:
    """Nobody can compute with a degree that is still open."""
    settings = ParallelismSettings(ring_degree=AUTO_DEGREE)
    assert not settings.is_resolved
    with pytest.raises(ValueError, match="resolve_parallelism"):
        _ = settings.world_size
    with pytest.raises(ValueError, match="resolve_parallelism"):
        parallelism_options(settings)


def test_the_product_is_shown() -> None:
    """Degrees that do not multiply to the world size are refused with the product written out."""
    problems = check_parallelism(ParallelismSettings(ulysses_degree=2), world_size=3)
    assert problems == (
        Problem(
            "parallelism.ulysses_degree",
            "ulysses_degree 2 x ring_degree 1 x tensor_parallel_degree 1 = 2, "
            "but the world size is 3",
        ),
    )


@pytest.mark.parametrize(
    ("settings", "world_size", "field"),
    [
        (ParallelismSettings(), 2, "ulysses_degree"),
        (ParallelismSettings(ring_degree=2), 1, "ring_degree"),
        (ParallelismSettings(tensor_parallel_degree=4), 2, "tensor_parallel_degree"),
        (ParallelismSettings(ulysses_degree=-1), 2, "ulysses_degree"),
        (ParallelismSettings(ulysses_degree=0, ring_degree=0), 2, "ring_degree"),
        (ParallelismSettings(ulysses_degree=2, backend="Native_PyTorch"), 2, "backend"),
        (ParallelismSettings(tensor_parallel_degree=2, backend="CACHE_DIT"), 2, "backend"),
        (ParallelismSettings(ulysses_degree=2, backend="None"), 2, "backend"),
        (ParallelismSettings(ring_degree=2, ulysses_anything=True), 2, "ulysses_anything"),
        (
            ParallelismSettings(ulysses_degree=2, ring_degree=2, ulysses_anything=True),
            4,
            "ulysses_anything",
        ),
        (ParallelismSettings(ring_degree=2, ulysses_float8=True), 2, "ulysses_float8"),
        (ParallelismSettings(tensor_parallel_degree=2, ulysses_async=True), 2, "ulysses_async"),
        (
            ParallelismSettings(ring_degree=2, ring_rotate_method="allgather"),
            2,
            "ring_rotate_method",
        ),
        (ParallelismSettings(ulysses_degree=2, attention_backend="flsh"), 2, "attention_backend"),
        (
            ParallelismSettings(ulysses_degree=2, extra_parallel_modules=("vae", "tokenizer")),
            2,
            "extra_parallel_modules",
        ),
        (ParallelismSettings(tensor_parallel_degree=5), 5, "tensor_parallel_degree"),
        (ParallelismSettings(ulysses_degree=5, ulysses_anything=False), 5, "ulysses_degree"),
        (ParallelismSettings(ulysses_degree=13), 13, "ulysses_degree"),
    ],
)
def test_what_cannot_run(settings: ParallelismSettings, world_size: int, field: str) -> None:
    """Degrees, flags, words and heads that cache-dit would stop at are refused before it starts."""
    problems = check_parallelism(settings, world_size=world_size, num_heads=HEADS)
    assert [(problem.field, problem.kind) for problem in problems] == [
        (f"parallelism.{field}", "invalid")
    ]


@pytest.mark.parametrize(
    ("settings", "heads", "reason"),
    [
        (ParallelismSettings(tensor_parallel_degree=3), 4, "3 does not divide the 4 heads of t"),
        (
            ParallelismSettings(ulysses_degree=3, ulysses_anything=False),
            4,
            "3 does not divide the 4 heads of t",
        ),
        (
            ParallelismSettings(ulysses_degree=3),
            4,
            "3 cannot share out the 4 heads of t, padded or not",
        ),
        (
            ParallelismSettings(ulysses_degree=3, tensor_parallel_degree=2),
            8,
            "3 cannot share out the 4 heads of t on each rank, padded or not",
        ),
    ],
)
def test_heads_stand_in_the_reason(settings: ParallelismSettings, heads: int, reason: str) -> None:
    """Whoever picks a degree that does not fit reads how many heads there are."""
    problems = check_parallelism(settings, world_size=settings.world_size, num_heads={"t": heads})
    assert [problem.reason for problem in problems] == [reason]


@pytest.mark.parametrize(
    ("settings", "world_size"),
    [
        (ParallelismSettings(), 1),
        (ParallelismSettings(ulysses_anything=True, ulysses_degree=AUTO_DEGREE), 1),
        (ParallelismSettings(ulysses_degree=5), 5),  # 24 heads, padded to 25
        (ParallelismSettings(ulysses_degree=2, backend="cache_dit"), 2),
        (ParallelismSettings(ulysses_degree=2, backend="Native_Diffuser"), 2),
        (ParallelismSettings(ulysses_degree=2, tensor_parallel_degree=2), 4),
        (ParallelismSettings(ulysses_degree=2, ring_degree=2, tensor_parallel_degree=2), 8),
        (ParallelismSettings(tensor_parallel_degree=2, backend="native_pytorch"), 2),
        (ParallelismSettings(ulysses_degree=2, extra_parallel_modules=("text_encoder_2",)), 2),
    ],
)
def test_what_can_run(settings: ParallelismSettings, world_size: int) -> None:
    """What cache-dit can run is not refused."""
    assert not check_parallelism(settings, world_size=world_size, num_heads=HEADS)


def test_what_the_pipeline_or_the_machine_lacks() -> None:
    """Missing components and missing accelerators are told from wrong values."""
    settings = ParallelismSettings(
        ulysses_degree=2,
        ring_degree=2,
        ulysses_float8=True,
        attention_backend="sage",
        extra_parallel_modules=("vae", "controlnet"),
    )
    problems = check_parallelism(
        settings, world_size=4, components={"vae", "text_encoder"}, accelerator=False
    )
    assert {(problem.field, problem.kind) for problem in problems} == {
        ("parallelism.ulysses_float8", "unsupported"),
        ("parallelism.attention_backend", "unsupported"),
        ("parallelism.extra_parallel_modules", "unsupported"),
    }


def test_options_are_those_of_cache_dit() -> None:
    """Degrees of 1 are left to cache-dit's own default, and the names are its own."""
    resolved = resolve_parallelism(ParallelismSettings(ulysses_degree=2), 2)
    options = parallelism_options(resolved)
    assert options["ulysses_size"] == 2
    assert options["ulysses_anything"] is True
    assert not {"ring_size", "tp_size", "attention_backend"} & set(options)


@pytest.mark.parametrize(
    ("name", "context_parallel", "accelerator", "kind"),
    [
        (None, True, False, None),
        ("native", True, False, None),
        ("flash", True, True, None),
        ("xformers", False, True, None),
        ("xformers", True, True, "unsupported"),
        ("flash", False, False, "unsupported"),
        ("nativ", False, True, "invalid"),
    ],
)
def test_attention(
    name: str | None, *, context_parallel: bool, accelerator: bool, kind: str | None
) -> None:
    """An implementation must be known, fit context parallelism, and have a device to run on."""
    problems = check_attention_backend(
        name, context_parallel=context_parallel, accelerator=accelerator
    )
    assert [problem.kind for problem in problems] == ([] if kind is None else [kind])


DQ = "svdq_int4_r32_dq"

WRONG_SVDQ: dict[str, Any] = {
    "calibrate_precision": "exact",
    "runtime_kernel": "v3",
    "quantize_device": "tpu",
    "smooth_strategy": "activation",
    "few_shot_relax_strategy": "none",
    "transfer_buckets": 0,
    "persistent_bins": 0,
    "persistent_buckets": -1,
    "max_copy_streams": 0,
    "max_inflight_prefetch_bytes": 0,
    "few_shot_steps": 0,
    "few_shot_relax_factor": 0.9,
    "few_shot_relax_top_ratio": 1.1,
    "activation_buffer_flush_sample_count": 0,
    "activation_buffer_flush_cpu_bytes": -1,
    "svd_refine_iters": -1,
    "few_shot_auto_compile": True,
}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (QuantizeSettings(quant_type="float8"), "quant_type"),
        (QuantizeSettings(quant_type="svdq_int4_dq"), "quant_type"),
        (QuantizeSettings(backend="bnb"), "backend"),
        (QuantizeSettings(backend="CACHE_DIT"), "backend"),
        (QuantizeSettings(backend="ao", quant_type=DQ), "backend"),
        (QuantizeSettings(precision_plan=(("to_q", "float9"),)), "precision_plan"),
        (
            QuantizeSettings(quant_type=DQ, precision_plan=(("to_q", "nvfp4"),)),
            "precision_plan",
        ),
        (QuantizeSettings(quant_type=DQ, per_tensor_fallback=False), "per_tensor_fallback"),
        (QuantizeSettings(svdq_kwargs=SvdqKwargs()), "svdq_kwargs"),
        (
            QuantizeSettings(
                components_to_quantize=(ComponentQuantization(component="vae", quant_type="x"),)
            ),
            "components_to_quantize.vae.quant_type",
        ),
        (
            QuantizeSettings(
                quant_type=DQ, components_to_quantize=(ComponentQuantization(component="vae"),)
            ),
            "components_to_quantize",
        ),
        *(
            (
                QuantizeSettings(quant_type=DQ, svdq_kwargs=replace(SvdqKwargs(), **{name: value})),
                f"svdq_kwargs.{name}",
            )
            for name, value in WRONG_SVDQ.items()
        ),
        (
            QuantizeSettings(
                quant_type="svdq_nvfp4_r32_dq", svdq_kwargs=SvdqKwargs(runtime_kernel="v2")
            ),
            "svdq_kwargs.runtime_kernel",
        ),
    ],
)
def test_quantisation_that_cannot_be(settings: QuantizeSettings, field: str) -> None:
    """What cache-dit's own config would raise for is refused, each under its own path."""
    problems = check_quantize(settings)
    assert [(problem.field, problem.kind) for problem in problems] == [
        (f"quantize.{field}", "invalid")
    ]


@pytest.mark.parametrize(
    "settings",
    [
        QuantizeSettings(),
        QuantizeSettings(quant_type="INT8_WEIGHT_ONLY", backend="torchao"),
        QuantizeSettings(quant_type=DQ, backend="cache-dit", svdq_kwargs=SvdqKwargs()),
        QuantizeSettings(
            quant_type=DQ,
            svdq_kwargs=SvdqKwargs(
                max_inflight_prefetch_bytes=2**40, few_shot_relax_strategy="TOP_Q4"
            ),
        ),
        QuantizeSettings(precision_plan=(("to_q", "int8_per_row"),)),
        QuantizeSettings(
            components_to_quantize=(
                ComponentQuantization(component="text_encoder", quant_type="int8_weight_only"),
            )
        ),
    ],
)
def test_quantisation_that_can_be(settings: QuantizeSettings) -> None:
    """What cache-dit takes is not refused."""
    assert not check_quantize(settings, components={"text_encoder"})


def test_quantisation_that_is_lacking() -> None:
    """A calibration function, a missing component and a missing device are no wrong values."""
    calibrated = check_quantize(QuantizeSettings(quant_type="svdq_int4_r32"))
    absent = check_quantize(
        QuantizeSettings(components_to_quantize=(ComponentQuantization(component="vae"),)),
        components={"transformer"},
    )
    on_cpu = check_quantize(QuantizeSettings(), accelerator=False)
    assert [problem.kind for problem in (*calibrated, *absent, *on_cpu)] == ["unsupported"] * 3


def test_quantize_options_are_those_of_cache_dit() -> None:
    """Components without a difference are a list, with one a mapping, and none stays unset."""
    plain, other = ComponentQuantization(component="a"), ComponentQuantization(component="b")
    assert "components_to_quantize" not in quantize_options(QuantizeSettings())
    assert "precision_plan" not in quantize_options(QuantizeSettings())
    listed = quantize_options(QuantizeSettings(components_to_quantize=(plain, other)))
    assert listed["components_to_quantize"] == ["a", "b"]
    different = ComponentQuantization(component="b", quant_type="nvfp4")
    mapped = quantize_options(QuantizeSettings(components_to_quantize=(plain, different)))
    assert mapped["components_to_quantize"] == {"a": {}, "b": {"quant_type": "nvfp4"}}
