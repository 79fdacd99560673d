"""The schema against cache-dit itself: names, defaults, words, and what its own loader makes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import cache_dit
import msgspec
import pytest
from cache_dit.attention.backends.register import _AttnBackend
from cache_dit.caching.cache_contexts import (
    CachedContext,
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.distributed import ParallelismConfig
from cache_dit.distributed.backend import ParallelismBackend
from cache_dit.distributed.core._modeling_parallel import _ContextParallelConfig
from cache_dit.quantization import QuantizeConfig
from cache_dit.quantization import config as quantization
from cache_dit.quantization.backend import QuantizeBackend
from diffusers.models.attention_dispatch import AttentionBackendName

from ditcast_runtime.settings import (
    CACHE_DIT_ATTENTION,
    DIFFUSERS_ATTENTION,
    DMD,
    MASK_POLICIES,
    CacheSettings,
    DBCache,
    DBPrune,
    FoCa,
    ParallelismSettings,
    QuantizeSettings,
    SvdqKwargs,
    TaylorSeer,
    cache_options,
    calibrator_options,
    check_cache,
    check_parallelism,
    dump_acceleration,
    load_acceleration,
    parallelism_options,
    quantize,
    resolve_parallelism,
)
from ditcast_runtime.settings.cache import CACHE_SPELLINGS
from ditcast_runtime.settings.parallelism import SPELLINGS, _can_pad

REFERENCE = Path(__file__).parents[1] / "data" / "reference_cache_dit_config.yaml"

OF_THE_CLASS = {"cache_type"}
"""The class itself says which it is."""

OF_THE_CALIBRATOR = {"enable_calibrator", "calibrator_type", "calibrator_kwargs"}
"""That there is a calibrator says the first two; the third is a way round the typed options."""


def defaults_of(cls: type, without: Collection[str] = ()) -> dict[str, object]:
    """Give the defaults of one of cache-dit's dataclasses, its private fields left out."""
    return {
        field.name: plain(
            field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else field.default
        )
        for field in dataclasses.fields(cls)
        if field.name not in without and not field.name.startswith("_")
    }


def plain(value: object) -> object:
    """Give tuples for lists and mappings, so that the two sides compare."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value


def ours(settings: msgspec.Struct) -> dict[str, object]:
    """Give a struct's fields under cache-dit's spelling."""
    fields = msgspec.structs.asdict(settings)
    return {CACHE_SPELLINGS.get(name, name): value for name, value in fields.items()}


@pytest.mark.parametrize(
    ("settings", "upstream", "without"),
    [
        (DBCache(), DBCacheConfig, OF_THE_CLASS),
        (DBPrune(), DBPruneConfig, OF_THE_CLASS),
        (TaylorSeer(), TaylorSeerCalibratorConfig, OF_THE_CALIBRATOR),
        (DMD(), DMDCalibratorConfig, OF_THE_CALIBRATOR),
        (FoCa(), FoCaCalibratorConfig, OF_THE_CALIBRATOR),
    ],
)
def test_cache_fields_and_defaults_are_those_of_cache_dit(
    settings: msgspec.Struct, upstream: type, without: set[str]
) -> None:
    """Each method and calibrator has exactly cache-dit's fields, with cache-dit's defaults."""
    assert ours(settings) == defaults_of(upstream, without)


def test_parallelism_fields_and_defaults_are_those_of_cache_dit() -> None:
    """ParallelismSettings has cache-dit's fields and defaults, with four differences on purpose."""
    left_out = {"cp_plan", "parallel_kwargs"}  # a Python object; an older form of the same fields
    upstream = {
        name: value
        for name, value in defaults_of(ParallelismConfig, left_out).items()
        if not name.startswith(("use_ray", "ray_"))  # the ranks are started by the service
    }
    fields: dict[str, Any] = dataclasses.asdict(ParallelismSettings())
    settings = {SPELLINGS.get(name, name): value for name, value in fields.items()}
    assert upstream.pop("backend") is ParallelismBackend.AUTO
    assert ParallelismBackend.from_str(settings.pop("backend")) is ParallelismBackend.AUTO
    for size in SPELLINGS.values():  # unset and 1 mean the same
        assert (settings.pop(size), upstream.pop(size)) == (1, None)
    # None: on wherever Ulysses can have it, because prompts have any length.
    assert (settings.pop("ulysses_anything"), upstream.pop("ulysses_anything")) == (None, False)
    assert settings == upstream


def test_quantize_fields_and_defaults_are_those_of_cache_dit() -> None:
    """QuantizeSettings has cache-dit's fields and defaults, functions left out."""
    upstream = defaults_of(QuantizeConfig, {"filter_fn", "calibrate_fn"})
    assert upstream.pop("backend") is QuantizeBackend.AUTO
    settings = dataclasses.asdict(QuantizeSettings())
    assert QuantizeBackend.from_str(settings.pop("backend")) is QuantizeBackend.AUTO
    for name in ("components_to_quantize", "precision_plan"):  # empty is cache-dit's None
        assert (settings.pop(name), upstream.pop(name)) == ((), None)
    assert settings == upstream


def test_svdq_fields_and_defaults_are_those_of_cache_dit() -> None:
    """SvdqKwargs has cache-dit's keys and defaults, but for a strategy that depends on the type."""
    upstream = dict(quantization._SVDQ_KWARGS_DEFAULTS)
    settings = dataclasses.asdict(SvdqKwargs())
    assert (settings.pop("smooth_strategy"), upstream.pop("smooth_strategy")) == (
        None,
        "activation",
    )
    assert settings == upstream


def test_attention_implementations_are_those_of_the_libraries() -> None:
    """The names that are known are the ones that cache-dit and diffusers have."""
    assert set(CACHE_DIT_ATTENTION) == {backend.value for backend in _AttnBackend}
    # cache-dit adds its own names to diffusers' enum as soon as it is used.
    assert set(DIFFUSERS_ATTENTION) | set(CACHE_DIT_ATTENTION) == {
        *(backend.value for backend in AttentionBackendName),
        *CACHE_DIT_ATTENTION,
    }


def test_quantize_words_are_those_of_cache_dit() -> None:
    """Kinds, words and strategies are the ones that cache-dit's own checks know."""
    source = Path(inspect.getfile(quantization)).parent / "torchao" / "quantize_ao.py"
    kinds = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "_ALLOWED_QUANTIZE_TYPES"
    )
    assert set(quantize.QUANT_TYPES) == set(kinds)
    words = quantize._SVDQ_WORDS
    assert words["calibrate_precision"] == quantization._SVDQ_CALIBRATE_PRECISIONS
    assert words["runtime_kernel"] == quantization._SVDQ_RUNTIME_KERNELS
    assert words["quantize_device"] == quantization._SVDQ_QUANTIZE_DEVICES
    strategies = set(quantization._SVDQ_SMOOTH_STRATEGIES) - {"activation"}  # not for _dq types
    assert set(words["smooth_strategy"]) == strategies
    relax = {*quantization._SVDQ_FEW_SHOT_RELAX_STRATEGIES, "top_q4"}
    assert set(words["few_shot_relax_strategy"]) == relax


@pytest.mark.parametrize("steps", [*range(1, 61), 100, 1000])
@pytest.mark.parametrize("policy", [*MASK_POLICIES, "nonsense"])
def test_mask_policies_are_refused_exactly_where_cache_dit_fails(policy: str, steps: int) -> None:
    """A policy's name passes for a number of steps if and only if cache-dit makes a mask of it."""
    settings = CacheSettings(method=DBCache(steps_computation_mask=policy))
    try:
        mask = cache_dit.steps_mask(total_steps=steps, mask_policy=policy)
    except (AssertionError, ValueError):
        assert check_cache(settings, num_inference_steps=steps)
    else:
        assert not check_cache(settings, num_inference_steps=steps)
        listed = CacheSettings(
            method=DBCache(steps_computation_mask=tuple(mask), steps_computation_policy="static")
        )
        assert not check_cache(listed, num_inference_steps=steps)


@pytest.mark.parametrize("heads", range(1, 33))
@pytest.mark.parametrize("ulysses", range(2, 17))
def test_heads_are_padded_exactly_where_cache_dit_pads(heads: int, ulysses: int) -> None:
    """Heads that Ulysses does not divide pass if and only if cache-dit's assertion holds."""
    padding = ulysses - heads % ulysses if heads % ulysses else 0
    holds = padding == 0 or padding < (heads + padding) // ulysses
    assert _can_pad(heads, ulysses) == holds
    settings = ParallelismSettings(ulysses_degree=ulysses)
    problems = check_parallelism(settings, world_size=ulysses, num_heads={"transformer": heads})
    assert bool(problems) == (not holds)


def test_what_the_checks_refuse_really_fails_inside_cache_dit() -> None:
    """The settings that are refused for a crash do crash in this version of cache-dit."""
    with pytest.raises(ValueError, match="must not be zero"):
        _ = CachedContext(cache_config=DBCacheConfig(warmup_interval=0)).warmup_steps
    with pytest.raises(AssertionError, match="cfg_compute_first"):
        CachedContext(cache_config=DBCacheConfig(enable_separate_cfg=True, cfg_compute_first=True))
    with pytest.raises(NotImplementedError, match="p2p"):
        _ContextParallelConfig(ring_degree=2, rotate_method="allgather")
    with pytest.raises(ValueError, match="ulysses_anything"):
        _ContextParallelConfig(ring_degree=2, ulysses_degree=2, ulysses_anything=True)
    with pytest.raises(ValueError, match="ulysses_degree"):
        _ContextParallelConfig(ring_degree=2, ulysses_degree=1, ulysses_float8=True)
    with pytest.raises(ValueError, match="No parallelism"):
        ParallelismConfig()


def as_any(value: object) -> Any:  # noqa: ANN401  (cache-dit says less than it knows)
    """Take a value out of the type checkers' hands."""
    return value


def test_the_reference_means_to_us_what_it_means_to_cache_dit() -> None:
    """The reference file gives the objects that cache-dit's own loader makes of it."""
    upstream = as_any(cache_dit.load_configs(str(REFERENCE)))
    settings = load_acceleration(REFERENCE)
    assert DBCacheConfig(**as_any(cache_options(settings.cache))) == upstream["cache_config"]
    calibrator = TaylorSeerCalibratorConfig(**as_any(calibrator_options(settings.cache)))
    assert calibrator == upstream["calibrator_config"]
    assert settings.parallelism is not None
    resolved = resolve_parallelism(settings.parallelism, 2)
    made = ParallelismConfig(**as_any(parallelism_options(resolved)))
    assert made == dataclasses.replace(
        upstream["parallelism_config"], ulysses_anything=True, parallel_kwargs={}
    )


@pytest.mark.parametrize(
    ("calibrator", "upstream_class"),
    [
        (None, None),
        (TaylorSeer(taylorseer_order=2), TaylorSeerCalibratorConfig),
        (DMD(dmd_rank=3), DMDCalibratorConfig),
        (FoCa(calibrator_cache_type="hidden_states"), FoCaCalibratorConfig),
    ],
)
def test_cache_dit_reads_what_is_dumped(
    calibrator: TaylorSeer | DMD | FoCa | None, upstream_class: Callable[..., object] | None
) -> None:
    """cache-dit's own loader makes the same objects of a dump as the options do."""
    acceleration = load_acceleration(REFERENCE)
    cache = CacheSettings(method=DBCache(max_cached_steps=7), calibrator=calibrator)
    dumped = dump_acceleration(dataclasses.replace(acceleration, cache=cache))
    upstream = as_any(cache_dit.load_configs(dumped))
    assert upstream["cache_config"] == DBCacheConfig(**as_any(cache_options(cache)))
    made = upstream_class(**calibrator_options(cache)) if upstream_class else None
    assert upstream["calibrator_config"] == made


def test_the_schema_is_imported_without_torch() -> None:
    """The service can import the settings: neither torch, cache-dit nor gRPC come with them."""
    code = (
        "import sys, ditcast_runtime.settings\n"
        "heavy = {'torch', 'diffusers', 'cache_dit', 'grpc', 'google.protobuf', 'numpy'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
