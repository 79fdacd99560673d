"""What is no message, or too long for a header, is the caller's fault, on every service."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from grpc import aio
from grpc_status import rpc_status
from structlog.testing import capture_logs
from tests.service.conftest import Served

from ditcast.v1 import diffusion_service_pb2 as pb

NO_MESSAGE = b"\xff\xff\xff\x0f"
UNARY = [
    "/ditcast.v1.DiffusionService/GetCapabilities",
    "/grpc.health.v1.Health/Check",
    "/grpc.channelz.v1.Channelz/GetServers",
]
STREAMING = [
    "/ditcast.v1.DiffusionService/Generate",
    "/grpc.health.v1.Health/Watch",
]
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def refusal(call: Any) -> details.BadRequest:  # noqa: ANN401 (any kind of call)
    """Await what must be refused as invalid; give its violations."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call if not hasattr(call, "__aiter__") else [each async for each in call]
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error)
    assert status is not None
    bad = details.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    return bad


@pytest.mark.parametrize("path", [*UNARY, *STREAMING, REFLECTION])
async def test_bytes_that_are_no_message_are_invalid_and_leave_no_traceback(
    path: str, served: Served
) -> None:
    """Not UNKNOWN, and nothing in the log that an unknown caller could fill it with."""
    channel: Any = served.channel
    with capture_logs() as lines:
        if path == REFLECTION:
            await refusal(channel.stream_stream(path)(iter([NO_MESSAGE])))
        elif path in STREAMING:
            await refusal(channel.unary_stream(path)(NO_MESSAGE))
        else:
            await refusal(channel.unary_unary(path)(NO_MESSAGE))
    assert "Traceback" not in str(lines)


@pytest.mark.parametrize("length", [129, 20_000, 300_000])
async def test_an_id_that_no_header_can_hold_is_refused_by_its_field(
    length: int, served: Served
) -> None:
    """The headers must not carry it back: clients would end the call before they see why."""
    call = served.stub.Generate(pb.GenerateRequest(prompt="x", request_id="x" * length))
    bad = await refusal(call)
    assert [violation.field for violation in bad.field_violations] == ["request_id"]
