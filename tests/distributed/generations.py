"""What the tests ask for, and what they read from events, results and statuses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from ditcast.v1.acceleration_pb2 import (
    STEPS_COMPUTATION_POLICY_STATIC,
    CacheConfig,
    DBCache,
    Disabled,
)
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast.v1.generation_pb2 import OUTPUT_FORMAT_RAW_RGB8, GenerationEvent, OutputOptions
from ditcast_client import Client, Generation, Result
from ditcast_client.fields import GenerateFields

if TYPE_CHECKING:  # It is there for type checkers alone.
    from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceAsyncStub

RAW = OutputOptions(format=OUTPUT_FORMAT_RAW_RGB8)
PROMPT = "a large red circle left of a small blue square on a yellow background"
OFF = CacheConfig(disabled=Disabled())
MASK = (1, 1, 0, 1, 0, 0, 1, 1)
MASKED = CacheConfig(
    db_cache=DBCache(
        fn_compute_blocks=1,
        steps_computation_mask=MASK,
        steps_computation_policy=STEPS_COMPUTATION_POLICY_STATIC,
    )
)
"""Decides by the step alone: no rounding can flip it. For 8 steps."""
FOR_EVER = 990
"""Steps that no test waits for; some schedulers cannot make 1000, as many as may be asked for."""

Call = grpc.aio.UnaryStreamCall[Any, Any]

_TRAILER = "grpc-status-details-bin"
_MAX_TRAILER_BYTES = 4096
_KNOWN = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.QuotaFailure,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
)


def fields(**changed: Unpack[GenerateFields]) -> GenerateFields:
    """Give a request of 8 steps in two passes, as raw pixels, with some fields changed."""
    usual: GenerateFields = {
        "prompt": PROMPT,
        "negative_prompt": " ",
        "true_cfg_scale": 3.0,
        "num_inference_steps": 8,
        "seed": 5,
        "output": RAW,
    }
    return {**usual, **changed}


def small(**changed: Unpack[GenerateFields]) -> GenerateFields:
    """Give a request of 2 steps for a little picture, with some fields changed."""
    little: GenerateFields = {"width": 64, "height": 64, "num_inference_steps": 2}
    return {**fields(), **little, **changed}


def other_fields(**changed: Unpack[GenerateFields]) -> GenerateFields:
    """Give a request of 2 steps to `server_other`, with some fields changed."""
    usual: GenerateFields = {
        "prompt": "a",
        "width": 64,
        "height": 64,
        "num_inference_steps": 2,
        "seed": 5,
        "output": RAW,
    }
    return {**usual, **changed}


def unmeasured(**changed: Unpack[GenerateFields]) -> GenerateFields:
    """Give a request of a size of its own: nothing foretells that its time limit is too short."""
    own: GenerateFields = {"width": 96, "height": 64}
    return {**fields(**changed), **own}


async def picture(client: Client, **changed: Unpack[GenerateFields]) -> bytes:
    """Make one picture and give its pixels."""
    [output] = (await client.generate(**fields(**changed)).result()).outputs
    return output.data


async def watched(generation: Generation) -> tuple[list[GenerationEvent], Result]:
    """Read all events, then the result."""
    events = [event async for event in generation]
    return events, await generation.result()


async def watch_until(events: AsyncIterator[GenerationEvent], kind: str, step: int = 0) -> None:
    """Read up to the first event of a kind, and of a step."""
    async for event in events:
        if event.WhichOneof("kind") == kind and (not step or event.step_completed.step == step):
            return
    pytest.fail(f"no {kind} came")


def endless(asked: GenerateFields) -> GenerateFields:
    """Ask for the same with steps that no test waits for."""
    return {**asked, "num_inference_steps": FOR_EVER}


@contextlib.asynccontextmanager
async def occupied(client: Client, asked: GenerateFields) -> AsyncIterator[Generation]:
    """Keep the ranks busy with a generation that does not end by itself."""
    async with client.generate(**endless(asked)) as running:
        # Kept: an iterator that is dropped leaves its generation, and cancels it.
        events = aiter(running)
        await watch_until(events, "started")
        yield running


def kinds(events: list[GenerationEvent]) -> list[str]:
    """Name the kinds of events, without heartbeats, which are no part of the log."""
    named = [event.WhichOneof("kind") or "" for event in events]
    return [name for name in named if name != "heartbeat"]


def levels_apart(first: bytes, second: bytes) -> int:
    """Give the largest difference of two raw pictures, in levels of 0 to 255."""
    return int(_differences(first, second).max())


def mean_apart(first: bytes, second: bytes) -> float:
    """Give the mean difference of two raw pictures, in levels."""
    return float(_differences(first, second).mean())


def _differences(first: bytes, second: bytes) -> np.ndarray:
    assert len(first) == len(second)
    left, right = (np.frombuffer(data, np.uint8).astype(np.int16) for data in (first, second))
    apart: np.ndarray = np.abs(left - right)
    return apart


@contextlib.asynccontextmanager
async def stub_of(address: str) -> AsyncIterator[DiffusionServiceAsyncStub]:
    """Connect without our client."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield DiffusionServiceStub(channel)


async def read_to_failure(call: Call) -> tuple[list[GenerationEvent], grpc.aio.AioRpcError]:
    """Read what is left of a stream, up to the status that ends it."""
    events: list[GenerationEvent] = []
    response: Any
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            events.append(response.event)
    except grpc.aio.AioRpcError as error:
        return events, error
    pytest.fail("the stream ended well")


@dataclass(frozen=True)
class Ending:
    """A status that is not OK, with its details by type."""

    code: grpc.StatusCode
    message: str
    details: tuple[Message, ...]

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        """The ErrorInfo that every status of ours carries."""
        return self.detail(error_details_pb2.ErrorInfo)

    @property
    def reason(self) -> str:
        """Its UPPER_SNAKE reason."""
        return str(self.info.reason)

    @property
    def retry_seconds(self) -> float:
        """Its RetryInfo's delay."""
        delay = self.detail(error_details_pb2.RetryInfo).retry_delay
        return float(delay.ToTimedelta().total_seconds())

    def detail(self, kind: type[Message]) -> Any:  # noqa: ANN401 (google.rpc says no types)
        """Give the one detail of a type."""
        [found] = [detail for detail in self.details if isinstance(detail, kind)]
        return found

    def has(self, kind: type[Message]) -> bool:
        """Say whether there is a detail of a type."""
        return any(isinstance(detail, kind) for detail in self.details)


def ending(error: grpc.aio.AioRpcError) -> Ending:
    """Read a status, and hold it to what holds for all of ours: small, and from this domain."""
    trailers = [value for key, value in error.trailing_metadata() or () if key == _TRAILER]
    [packed] = trailers
    assert isinstance(packed, bytes)
    # base64 makes four characters of three bytes, and that is what proxies count.
    assert len(packed) * 4 / 3 < _MAX_TRAILER_BYTES
    status = Status.FromString(packed)
    details = tuple(
        kind.FromString(detail.value)
        for detail in status.details
        for kind in _KNOWN
        if detail.TypeName() == kind.DESCRIPTOR.full_name
    )
    assert len(details) == len(status.details)
    found = Ending(error.code(), error.details() or "", details)
    assert found.info.domain == "ditcast"
    assert found.reason == found.reason.upper() != ""
    return found
