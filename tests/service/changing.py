"""Configurations to change, and requests that change them."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
from google.protobuf.field_mask_pb2 import FieldMask
from tests.service.fakes import CONFIGURATION, FACTS

from ditcast.v1 import acceleration_pb2 as pb
from ditcast.v1 import diffusion_service_pb2 as service_pb
from ditcast_runtime.config import Configuration, GenerationDefaults
from ditcast_runtime.messages import Facts
from ditcast_runtime.settings import (
    CacheSettings,
    DBCache,
    TaylorSeer,
)
from ditcast_service.change import Plan, plan
from ditcast_service.config import ServerConfig

INITIAL = dataclasses.replace(
    CONFIGURATION,
    cache=CacheSettings(
        method=DBCache(fn_compute_blocks=2, residual_diff_threshold=0.1, max_warmup_steps=4),
        calibrator=TaylorSeer(taylorseer_order=3),
    ),
    defaults=GenerationDefaults(num_inference_steps=20, width=128, height=128),
)
CURRENT = dataclasses.replace(
    INITIAL,
    revision=4,
    cache=CacheSettings(
        method=DBCache(fn_compute_blocks=4, residual_diff_threshold=0.3),
        calibrator=TaylorSeer(
            taylorseer_order=2,
            enable_encoder_calibrator=False,
            calibrator_cache_type="hidden_states",
        ),
    ),
    defaults=GenerationDefaults(num_inference_steps=30, guidance_scale=2.0),
)
"""Differs from the initial one in what is set and in what is not."""

EVERYWHERE = msgspec.structs.replace(FACTS, cache_methods=(), parallel_modes=())
"""Facts of a pipeline that can do everything."""


def asking(*paths: str, **fields: Any) -> service_pb.ConfigureRequest:  # noqa: ANN401 (as protobuf)
    """Make a request: a configuration, given as nested dicts, and the paths of the mask."""
    mask = FieldMask(paths=paths) if paths else None
    return service_pb.ConfigureRequest(configuration=pb.Configuration(**fields), update_mask=mask)


def planned(
    request: service_pb.ConfigureRequest,
    current: Configuration = CURRENT,
    initial: Configuration = INITIAL,
    facts: Facts = EVERYWHERE,
    world_size: int = 1,
) -> Plan:
    """Plan as the servicer does."""
    return plan(current, initial, request, facts, ServerConfig(world_size=world_size))


def with_method(**options: Any) -> Configuration:  # noqa: ANN401 (as msgspec)
    """Give the current configuration with other options of its method."""
    method = msgspec.structs.replace(CURRENT.cache.method, **options)
    return dataclasses.replace(CURRENT, cache=dataclasses.replace(CURRENT.cache, method=method))


def with_cache(method: Any, calibrator: Any = None) -> Configuration:  # noqa: ANN401 (unions)
    """Give the current configuration with another cache."""
    cache = CacheSettings(method=method, calibrator=calibrator)
    return dataclasses.replace(CURRENT, cache=cache)


def with_defaults(**values: Any) -> Configuration:  # noqa: ANN401 (as dataclasses)
    """Give the current configuration with other defaults."""
    return dataclasses.replace(CURRENT, defaults=dataclasses.replace(CURRENT.defaults, **values))
