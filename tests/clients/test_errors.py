"""Every status of the contract arrives as its own class, with what its details say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, PreconditionFailure, RetryInfo
from grpc import StatusCode
from tests.clients.conftest import Scripted
from tests.clients.scripted import ours, queued, started, status

import ditcast_client
from ditcast_client import (
    Aborted,
    AlreadyExists,
    Cancelled,
    Client,
    DataLoss,
    DeadlineExceeded,
    DitcastError,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PreconditionViolation,
    ResourceExhausted,
    TransportBroken,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    errors,
)

RETRY = RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
FIELDS = BadRequest(
    field_violations=[
        BadRequest.FieldViolation(field="width", description="must be a multiple of 16"),
        BadRequest.FieldViolation(field="cache.db_cache", description="too many blocks"),
    ]
)
RELOAD = PreconditionFailure(
    violations=[
        PreconditionFailure.Violation(
            type="NEEDS_RELOAD", subject="parallelism", description="needs a reload"
        )
    ]
)


@pytest.fixture
async def client(server: Scripted) -> AsyncIterator[Client]:
    """Connect without coming back after a break."""
    async with Client(server.address, reattach=timedelta(0)) as client:
        yield client


async def failure(
    client: Client, server: Scripted, code: StatusCode, *details: Message
) -> DitcastError:
    """Give the error of a generation that the server ends with a status."""
    server.service.script = [queued(), status(code, "because", *details)]
    with pytest.raises(DitcastError) as caught:
        await client.generate(prompt="a red cup").result()
    return caught.value


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.INVALID_ARGUMENT, InvalidArgument),
        (StatusCode.NOT_FOUND, NotFound),
        (StatusCode.ALREADY_EXISTS, AlreadyExists),
        (StatusCode.ABORTED, Aborted),
        (StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        (StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
        (StatusCode.UNAVAILABLE, Unavailable),
        (StatusCode.UNIMPLEMENTED, Unimplemented),
        (StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (StatusCode.CANCELLED, Cancelled),
        (StatusCode.UNAUTHENTICATED, Unauthenticated),
        (StatusCode.PERMISSION_DENIED, PermissionDenied),
        (StatusCode.INTERNAL, Internal),
        (StatusCode.DATA_LOSS, DataLoss),
    ],
)
async def test_each_status_has_its_class(
    client: Client, server: Scripted, code: StatusCode, kind: type[DitcastError]
) -> None:
    """The class tells the status; code, reason and message are there too."""
    error = await failure(client, server, code, ours("SOME_REASON"))
    assert type(error) is kind
    assert (error.code, error.reason, error.message) == (code, "SOME_REASON", "because")
    assert str(error) == f"{code.name} (SOME_REASON): because"


def test_the_table_has_every_code() -> None:
    """No code is left to chance, and every class of the table is public."""
    assert set(errors.CLASSES) == set(StatusCode) - {StatusCode.OK}
    assert {kind.__name__ for kind in errors.CLASSES.values()} <= set(ditcast_client.__all__)


async def test_field_violations(client: Client, server: Scripted) -> None:
    """All refused fields are there, by path and reason, and in the text of the error."""
    error = await failure(
        client, server, StatusCode.INVALID_ARGUMENT, ours("INVALID_REQUEST"), FIELDS
    )
    assert isinstance(error, InvalidArgument)
    assert error.field_violations == (
        FieldViolation("width", "must be a multiple of 16"),
        FieldViolation("cache.db_cache", "too many blocks"),
    )
    assert "width: must be a multiple of 16" in str(error)
    assert error.details == (ours("INVALID_REQUEST"), FIELDS)


async def test_precondition_violations(client: Client, server: Scripted) -> None:
    """What the pipeline cannot do is there, with its kind."""
    error = await failure(
        client, server, StatusCode.FAILED_PRECONDITION, ours("UNSUPPORTED"), RELOAD
    )
    assert isinstance(error, FailedPrecondition)
    assert error.violations == (
        PreconditionViolation("NEEDS_RELOAD", "parallelism", "needs a reload"),
    )


@pytest.mark.parametrize("code", [StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED])
async def test_retry_delay(client: Client, server: Scripted, code: StatusCode) -> None:
    """The delay tells after how long to try again; without one, trying again does not help."""
    error = await failure(client, server, code, ours("QUEUE_FULL"), RETRY)
    assert isinstance(error, Unavailable | ResourceExhausted)
    assert error.retry_delay == timedelta(seconds=2.5)
    error = await failure(client, server, code, ours("OUT_OF_MEMORY"))
    assert isinstance(error, Unavailable | ResourceExhausted)
    assert error.retry_delay is None


@pytest.mark.parametrize("code", [StatusCode.CANCELLED, StatusCode.DEADLINE_EXCEEDED])
@pytest.mark.parametrize(("told", "steps"), [({"steps_done": "12"}, 12), ({}, None)])
async def test_steps_done(
    client: Client, server: Scripted, code: StatusCode, told: dict[str, str], steps: int | None
) -> None:
    """A cancel and a time limit tell how far it came, where the server said so."""
    error = await failure(client, server, code, ours("ENDED", **told))
    assert isinstance(error, Cancelled | DeadlineExceeded)
    assert error.steps_done == steps


async def test_error_id(client: Client, server: Scripted) -> None:
    """A fault of the server carries the id under which its log tells more."""
    error = await failure(client, server, StatusCode.INTERNAL, ours("NAN_OUTPUT", error_id="e-1"))
    assert isinstance(error, Internal)
    assert error.error_id == "e-1"


@pytest.mark.parametrize("code", [StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.UNAVAILABLE])
async def test_foreign_status_is_a_broken_transport(
    client: Client, server: Scripted, code: StatusCode
) -> None:
    """INTERNAL, UNKNOWN and UNAVAILABLE without our ErrorInfo come from something in between."""
    assert type(await failure(client, server, code)) is TransportBroken
    foreign = ours("SOME_REASON")
    foreign.domain = "envoy"
    assert type(await failure(client, server, code, foreign)) is TransportBroken


async def test_no_server_is_a_broken_transport() -> None:
    """Where nobody listens, every call says so."""
    async with Client("unix:/nowhere/ditcast.sock") as client:
        with pytest.raises(TransportBroken):
            await client.capabilities()
        with pytest.raises(TransportBroken):
            await client.generate(prompt="a red cup").result()


async def test_unary_calls_raise_the_same_errors(client: Client, server: Scripted) -> None:
    """A cancel of an unknown id is NotFound, with the server's reason."""
    server.service.cancel_status = status(StatusCode.NOT_FOUND, "no such id", ours("UNKNOWN_ID"))
    with pytest.raises(NotFound) as caught:
        await client.cancel("nobody")
    assert caught.value.reason == "UNKNOWN_ID"


async def test_spoilt_details_do_not_hide_the_status() -> None:
    """Trailers that something on the way has spoilt still give the class of the code."""
    spoilt = grpc.aio.AioRpcError(
        StatusCode.NOT_FOUND,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff")),
        details="no such id",
    )
    error = errors.from_rpc_error(spoilt)
    assert type(error) is NotFound
    assert (error.message, error.details) == ("no such id", ())


async def test_failure_after_events_keeps_their_error(client: Client, server: Scripted) -> None:
    """The watcher and the result tell the same error."""
    server.service.script = [
        queued(),
        started(),
        status(StatusCode.UNAVAILABLE, "ranks lost", ours("RANKS_LOST"), RETRY),
    ]
    generation = client.generate(prompt="a red cup")
    with pytest.raises(Unavailable) as watched:
        async for _ in generation:
            pass
    with pytest.raises(Unavailable) as awaited:
        await generation.result()
    assert awaited.value is watched.value
    assert server.service.cancelled == []
