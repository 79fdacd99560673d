"""The contract has every option of cache-dit under its own name, but for those named here."""

import dataclasses
import importlib
from enum import Enum

import pytest
from cache_dit import (
    BasicCacheConfig,
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    ParallelismConfig,
    QuantizeConfig,
    TaylorSeerCalibratorConfig,
)
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from ditcast.v1 import acceleration_pb2

OURS_ONLY = {"steps_computation_mask_policy"}  # cache-dit has it in the same key as the mask
METHOD = {"cache_type"}  # which message is set says it
CALIBRATOR = {
    "enable_calibrator",
    "calibrator_type",
    "calibrator_kwargs",
}  # likewise; kwargs are internal
DEGREES = {
    "ulysses_size": "ulysses_degree",
    "ring_size": "ring_degree",
    "tp_size": "tensor_parallel_degree",
}
NOT_ON_THE_WIRE = {
    "cp_plan",  # a Python object
    "parallel_kwargs",  # deprecated: read from files, never written
    "filter_fn",  # a function
    "calibrate_fn",  # a function
}


def theirs(config: type) -> set[str]:
    """Give cache-dit's options in our spelling, without Ray's: ditcast starts its own ranks."""
    names = {f.name for f in dataclasses.fields(config) if not f.name.startswith(("_", "ray_"))}
    return {DEGREES.get(name, name.lower()) for name in names - NOT_ON_THE_WIRE - {"use_ray"}}


@pytest.mark.parametrize(
    ("message", "config", "implied"),
    [
        (acceleration_pb2.DBCache, DBCacheConfig, METHOD),
        (acceleration_pb2.DBPrune, DBPruneConfig, METHOD),
        (acceleration_pb2.TaylorSeer, TaylorSeerCalibratorConfig, CALIBRATOR),
        (acceleration_pb2.DMD, DMDCalibratorConfig, CALIBRATOR),
        (acceleration_pb2.FoCa, FoCaCalibratorConfig, CALIBRATOR),
        (acceleration_pb2.ParallelismConfig, ParallelismConfig, set()),
        (acceleration_pb2.QuantizeConfig, QuantizeConfig, set()),
    ],
)
def test_message_has_the_options_of_cache_dit(
    message: type[Message], config: type, implied: set[str]
) -> None:
    """A new release of cache-dit cannot bring an option that the contract lacks unnoticed."""
    ours = {f.name for f in message.DESCRIPTOR.fields}
    assert ours - OURS_ONLY == theirs(config) - implied


def test_svdq_options_are_those_of_cache_dit() -> None:
    """The options of SVDQuant are a dict in cache-dit, and a message here."""
    from cache_dit.quantization.config import _SVDQ_KWARGS_DEFAULTS

    ours = {f.name for f in acceleration_pb2.SvdqKwargs.DESCRIPTOR.fields}
    assert ours == set(_SVDQ_KWARGS_DEFAULTS)


def words(enum: EnumDescriptor) -> set[str]:
    """Give an enum's values in cache-dit's spelling, as the contract's file comment defines it."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower() for value in enum.values[1:]}


@pytest.mark.parametrize(
    ("message", "field", "upstream"),
    [
        ("ParallelismConfig", "backend", "cache_dit.distributed.backend:ParallelismBackend"),
        ("QuantizeConfig", "backend", "cache_dit.quantization.backend:QuantizeBackend"),
    ],
)
def test_enum_has_the_words_of_cache_dit(message: str, field: str, upstream: str) -> None:
    """Each value but NONE, which cache-dit itself refuses, has its word in the contract."""
    module, name = upstream.split(":")
    theirs_: type[Enum] = getattr(importlib.import_module(module), name)
    enum = (
        acceleration_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name[field].enum_type
    )
    assert enum is not None
    assert words(enum) == {member.name.lower() for member in theirs_} - {"none"}


def test_defaults_in_comments_are_those_of_cache_dit() -> None:
    """The figures that the contract's comments give as defaults are cache-dit's."""
    cache = BasicCacheConfig()
    figures = (cache.Fn_compute_blocks, cache.Bn_compute_blocks, cache.residual_diff_threshold)
    assert figures == (8, 0, 0.08)
    assert (cache.max_warmup_steps, cache.warmup_interval) == (8, 1)
    assert (cache.max_cached_steps, cache.max_continuous_cached_steps) == (-1, -1)
    assert DBPruneConfig().dynamic_prune_threshold_relax_ratio == 1.25
    assert (DMDCalibratorConfig().dmd_history, DMDCalibratorConfig().dmd_ridge) == (6, 1e-8)
