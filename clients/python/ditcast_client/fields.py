"""The fields of a request as keyword arguments; a test holds them to the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypedDict

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from ditcast.v1.acceleration_pb2 import CacheConfig
from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast.v1.generation_pb2 import (
    AdapterWeight,
    DisconnectPolicy,
    OutputOptions,
    Priority,
    ProgressOptions,
)
from ditcast_client.images import Picture, input_image


class GenerateFields(TypedDict, total=False):
    """The fields of GenerateRequest, as its comments in the contract say."""

    request_id: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    seed: int
    num_images: int
    output: OutputOptions
    cache: CacheConfig
    pipeline_kwargs: Struct | Mapping[str, object]
    progress: ProgressOptions
    priority: Priority.ValueType
    sigmas: Sequence[float]
    num_frames: int
    fps: float
    images: Sequence[Picture]
    adapters: Sequence[AdapterWeight]
    timeout: Duration | timedelta
    on_disconnect: DisconnectPolicy.ValueType
    reattach_window: Duration | timedelta
    validate_only: bool
    shadow_comparison: bool


def request_from(fields: GenerateFields) -> GenerateRequest:
    """Build the request.

    Raises:
        TypeError: A value is of another type than its field.
        ValueError: A value is outside what its field can hold, or there is no such field.
        OSError: A picture cannot be read.
    """
    if "images" in fields:
        fields = {**fields, "images": [input_image(picture) for picture in fields["images"]]}
    return GenerateRequest(**fields)  # type: ignore[arg-type]  # stubs know no timedelta, no dict
