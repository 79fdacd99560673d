"""Settings go to messages and back without loss; so do files by way of messages."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.service.fakes import CONFIGURATION

from ditcast.v1 import acceleration_pb2 as pb
from ditcast.v1 import generation_pb2 as generation_pb
from ditcast_runtime.config import Configuration, GenerationDefaults
from ditcast_runtime.events import CacheDecision
from ditcast_runtime.generation import OutputFormat, State
from ditcast_runtime.settings import (
    DMD,
    Acceleration,
    CacheSettings,
    Compile,
    ComponentQuantization,
    DBCache,
    DBPrune,
    Disabled,
    FoCa,
    LoadingSettings,
    Offload,
    ParallelismSettings,
    QuantizeSettings,
    SvdqKwargs,
    TaylorSeer,
    dump_acceleration,
    load_acceleration,
    parse_acceleration,
)
from ditcast_runtime.settings.loading import DTYPES
from ditcast_service.translate.acceleration import (
    cache_from_proto,
    cache_to_proto,
    configuration_from_proto,
    configuration_to_proto,
    loading_from_proto,
    loading_to_proto,
    parallelism_from_proto,
    parallelism_to_proto,
    quantize_from_proto,
    quantize_to_proto,
)
from ditcast_service.translate.events import state_number
from ditcast_service.translate.values import duration, from_value, seconds_of, to_number, to_value

REFERENCE = Path(__file__).parents[1] / "data" / "reference_cache_dit_config.yaml"

counts = st.integers(0, 2**31 - 1)
reals = st.floats(0, 1e9, allow_nan=False)
names = st.text("abcdefgh_", min_size=1, max_size=8)
maybe_reals = st.none() | reals
kinds = st.sampled_from(["residual", "hidden_states"])

step_options = {
    "fn_compute_blocks": counts,
    "bn_compute_blocks": counts,
    "residual_diff_threshold": reals,
    "max_accumulated_residual_diff_threshold": maybe_reals,
    "max_warmup_steps": counts,
    "warmup_interval": counts,
    "max_cached_steps": st.integers(-1, 1000),
    "max_continuous_cached_steps": st.integers(-1, 1000),
    "enable_separate_cfg": st.none() | st.booleans(),
    "cfg_compute_first": st.booleans(),
    "cfg_diff_compute_separate": st.booleans(),
    "num_inference_steps": st.none() | counts,
    "steps_computation_mask": st.none()
    | st.sampled_from(["slow", "medium", "fast", "ultra"])
    | st.lists(st.integers(0, 1), min_size=1).map(tuple),
    "steps_computation_policy": st.sampled_from(["dynamic", "static"]),
    "force_refresh_step_hint": st.none() | counts,
    "force_refresh_step_policy": st.sampled_from(["once", "repeat"]),
}
prune_options = {
    "enable_dynamic_prune_threshold": st.booleans(),
    "max_dynamic_prune_threshold": maybe_reals,
    "dynamic_prune_threshold_relax_ratio": reals,
    "non_prune_block_ids": st.lists(counts, max_size=4).map(tuple),
    "force_reduce_calibrator_vram": st.booleans(),
}
forecast = {"enable_encoder_calibrator": st.booleans(), "calibrator_cache_type": kinds}
calibrators = (
    st.builds(TaylorSeer, taylorseer_order=counts, **forecast)
    | st.builds(
        DMD,
        dmd_history=counts,
        dmd_rank=counts,
        dmd_ridge=reals,
        dmd_svd_precision=st.sampled_from(["low", "medium", "high"]),
        **forecast,
    )
    | st.builds(FoCa, **forecast)
)
caches = st.builds(
    CacheSettings,
    method=st.builds(Disabled)
    | st.builds(DBCache, **step_options)
    | st.builds(DBPrune, **step_options, **prune_options),
    calibrator=st.none() | calibrators,
)
extra_values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | names | st.just(0.5)
parallelisms = st.builds(
    ParallelismSettings,
    ulysses_degree=counts,
    ring_degree=counts,
    tensor_parallel_degree=counts,
    backend=st.sampled_from(["Auto", "CACHE_DIT", "Native_PyTorch", "Native_Hybrid"]),
    attention_backend=st.none() | names,
    ulysses_anything=st.none() | st.booleans(),
    ulysses_float8=st.booleans(),
    ulysses_async=st.booleans(),
    ring_rotate_method=st.sampled_from(["p2p"]),
    ring_convert_to_fp32=st.booleans(),
    extra_parallel_modules=st.lists(names, max_size=3).map(tuple),
    extra_parallel_kwargs=st.dictionaries(names, extra_values, max_size=3).map(
        lambda values: tuple(sorted(values.items()))
    ),
)
plans = st.dictionaries(names, names, max_size=3).map(lambda plan: tuple(sorted(plan.items())))
svdqs = st.builds(
    SvdqKwargs,
    streaming=st.booleans(),
    runtime_kernel=st.sampled_from(["v1", "v2"]),
    max_copy_streams=st.none() | counts,
    activation_buffer_flush_sample_count=st.none() | st.integers(1, 99),
    few_shot_steps=st.none() | st.integers(1, 99),
    few_shot_relax_factor=reals,
)
components = st.builds(
    ComponentQuantization,
    component=names,
    backend=st.none() | st.sampled_from(["AUTO", "TORCHAO"]),
    quant_type=st.none() | names,
    exclude_layers=st.none() | st.lists(names, max_size=2).map(tuple),
    regional_quantize=st.none() | st.booleans(),
    precision_plan=st.none() | plans.filter(bool),
    svdq_kwargs=st.none() | svdqs,
)
quantizations = st.builds(
    QuantizeSettings,
    backend=st.sampled_from(["AUTO", "TORCHAO", "CACHE_DIT"]),
    quant_type=names,
    exclude_layers=st.lists(names, max_size=3).map(tuple),
    regional_quantize=st.booleans(),
    repeated_blocks=st.lists(names, max_size=3).map(tuple),
    components_to_quantize=st.lists(components, max_size=2, unique_by=lambda c: c.component).map(
        lambda entries: tuple(sorted(entries, key=lambda entry: entry.component))
    ),
    per_tensor_fallback=st.booleans(),
    precision_plan=plans,
    serialize_to=st.none() | names,
    svdq_kwargs=st.none() | svdqs,
    verbose=st.booleans(),
)
defaults = st.builds(
    GenerationDefaults,
    negative_prompt=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    width=st.none() | counts,
    height=st.none() | counts,
    num_inference_steps=st.none() | counts,
    guidance_scale=maybe_reals,
    true_cfg_scale=maybe_reals,
)


@given(caches)
def test_cache_settings_survive(settings: CacheSettings) -> None:
    """Domain to message to domain is the identity, over the wire's bytes too."""
    data = cache_to_proto(settings).SerializeToString()
    assert cache_from_proto(pb.CacheConfig.FromString(data)) == settings


@given(parallelisms)
def test_parallelism_survives(settings: ParallelismSettings) -> None:
    """Degrees, flags and extra options come back, whole numbers as whole numbers."""
    back = parallelism_from_proto(parallelism_to_proto(settings))
    assert back == settings
    assert repr(back) == repr(settings)


@given(quantizations)
def test_quantisation_survives(settings: QuantizeSettings) -> None:
    """An empty list differs from none, and null from a default."""
    assert quantize_from_proto(quantize_to_proto(settings)) == settings


loadings = st.builds(
    LoadingSettings,
    dtype=st.sampled_from(DTYPES),
    component_dtypes=st.dictionaries(names, st.sampled_from(DTYPES), max_size=3).map(
        lambda types: tuple(sorted(types.items()))
    ),
    offload=st.sampled_from(Offload),
    vae_tiling=st.booleans(),
    vae_slicing=st.booleans(),
    compile=st.sampled_from(Compile),
    channels_last=st.booleans(),
)


@given(loadings)
def test_loading_survives(settings: LoadingSettings) -> None:
    """What says nothing stands for the defaults, and everything said comes back."""
    assert loading_from_proto(loading_to_proto(settings)) == settings
    assert loading_from_proto(pb.LoadingConfig()) == LoadingSettings()
    configuration = dataclasses.replace(CONFIGURATION, loading=settings)
    assert configuration_from_proto(configuration_to_proto(configuration)) == configuration


@given(caches, parallelisms, st.none() | quantizations, defaults, st.none() | names)
def test_a_configuration_survives(
    cache: CacheSettings,
    parallelism: ParallelismSettings,
    quantize: QuantizeSettings | None,
    default: GenerationDefaults,
    backend: str | None,
) -> None:
    """What GetConfiguration answers is what is in force."""
    configuration = Configuration(
        revision=3,
        cache=cache,
        parallelism=parallelism,
        quantize=quantize,
        attention_backend=backend,
        defaults=default,
    )
    assert configuration_from_proto(configuration_to_proto(configuration)) == configuration


@given(caches, st.none() | parallelisms, st.none() | quantizations)
def test_a_file_survives_the_way_over_messages(
    cache: CacheSettings, parallelism: ParallelismSettings | None, quantize: QuantizeSettings | None
) -> None:
    """YAML to message to YAML gives the same file."""
    acceleration = Acceleration(cache=cache, parallelism=parallelism, quantize=quantize)
    text = yaml.safe_dump(dump_acceleration(acceleration))
    read = parse_acceleration(yaml.safe_load(text))
    over = Acceleration(
        cache=cache_from_proto(cache_to_proto(read.cache)),
        parallelism=read.parallelism
        and parallelism_from_proto(parallelism_to_proto(read.parallelism)),
        quantize=read.quantize and quantize_from_proto(quantize_to_proto(read.quantize)),
    )
    assert yaml.safe_dump(dump_acceleration(over)) == text


def test_the_reference_file_survives() -> None:
    """0.12 stays 0.12: reals are doubles on the wire."""
    read = load_acceleration(REFERENCE)
    message = cache_to_proto(read.cache)
    assert message.db_cache.residual_diff_threshold == 0.12
    assert cache_from_proto(message) == read.cache


def test_unset_options_are_cache_dits_defaults() -> None:
    """An empty method is cache-dit's own."""
    message = pb.CacheConfig(db_cache=pb.DBCache(), taylor_seer=pb.TaylorSeer())
    settings = cache_from_proto(message)
    assert settings == CacheSettings(method=DBCache(), calibrator=TaylorSeer())


def test_every_word_of_the_domain_has_a_number() -> None:
    """No enum of the domain can fail to translate."""
    for state in State:
        assert state_number(state) > 0
    for decision in CacheDecision:
        assert to_number(generation_pb.CacheDecision.DESCRIPTOR, decision) > 0
    for format_ in OutputFormat:
        assert to_number(generation_pb.OutputFormat.DESCRIPTOR, format_) > 0


@given(st.floats(0, 1e8))
def test_durations_are_exact_to_the_microsecond(seconds: float) -> None:
    """Time is a Duration, never a count of milliseconds."""
    assert math.isclose(seconds_of(duration(seconds)), seconds, abs_tol=1e-6)


@given(st.none() | st.booleans() | st.floats(allow_nan=False) | names | st.lists(names))
def test_scalars_and_lists_survive_a_struct(value: object) -> None:
    """What can be passed to a pipeline comes back as it was."""
    assert from_value(to_value(value)) == value  # type: ignore[arg-type]
