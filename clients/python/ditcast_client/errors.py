"""The errors of the client: one class for each status that a caller can act on.

`CLASSES` is the table from gRPC codes to classes. What a class knows beyond its message (fields,
delays, steps) it reads from the google.rpc details that came with the status, never from text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "ditcast"
"""Domain of the ErrorInfo in every status that comes from the server itself."""

LEFT_EARLY: Final = "LEFT_EARLY"
"""Reason of the one Cancelled that no server sent: the reader itself left."""

_DETAILS_KEY: Final = "grpc-status-details-bin"
_DETAIL_TYPES: Final[tuple[type[Message], ...]] = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.QuotaFailure,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
)

_Detail = TypeVar("_Detail", bound=Message)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field that was refused: its proto path from the request, and why."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


@dataclass(frozen=True, slots=True)
class PreconditionViolation:
    """Something that the loaded pipeline cannot do: a kind such as NEEDS_RELOAD, a subject, why."""

    type: str
    subject: str
    description: str

    def __str__(self) -> str:
        return f"{self.subject or self.type}: {self.description}"


class DitcastError(Exception):
    """A call or a generation that did not succeed; the base of all errors of this package.

    Attributes:
        code: The gRPC status code.
        reason: Why, in UPPER_SNAKE; empty where the status did not come from the server itself.
        message: Why, in a sentence.
        details: The google.rpc messages that came with the status.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        details: Sequence[Message] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = tuple(details)

    @property
    def violations(self) -> tuple[FieldViolation | PreconditionViolation, ...]:
        """What exactly was refused, one entry each; empty where the status does not say."""
        return ()

    def __str__(self) -> str:
        cause = f"{self.code.name} ({self.reason})" if self.reason else self.code.name
        # A server may have put the violations into its message already.
        unsaid = [text for text in map(str, self.violations) if text not in self.message]
        return "; ".join([f"{cause}: {self.message}", *unsaid])

    def _details_of(self, kind: type[_Detail]) -> Iterator[_Detail]:
        return (detail for detail in self.details if isinstance(detail, kind))

    def _metadata(self, key: str) -> str | None:
        infos = self._details_of(error_details_pb2.ErrorInfo)
        return next((info.metadata[key] for info in infos if key in info.metadata), None)

    def _retry_delay(self) -> timedelta | None:
        infos = self._details_of(error_details_pb2.RetryInfo)
        return next((info.retry_delay.ToTimedelta() for info in infos), None)

    def _steps_done(self) -> int | None:
        steps = self._metadata("steps_done")
        return int(steps) if steps is not None and steps.isdecimal() else None


class InvalidArgument(DitcastError):
    """Fields of the request are out of range, of the wrong shape, or not taken by this pipeline."""

    @property
    def field_violations(self) -> tuple[FieldViolation, ...]:
        """Every field that was refused, with the reason."""
        return tuple(
            FieldViolation(violation.field, violation.description)
            for detail in self._details_of(error_details_pb2.BadRequest)
            for violation in detail.field_violations
        )

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """The same as `field_violations`."""
        return self.field_violations


class NotFound(DitcastError):
    """No generation has this id, or it is somebody else's; or a revision is not kept."""


class AlreadyExists(DitcastError):
    """The request id was used before, with other content."""


class Aborted(DitcastError):
    """The configuration is no longer the revision that the change was built on."""

    @property
    def current_revision(self) -> int | None:
        """The revision in force; None where the server did not say."""
        revision = self._metadata("current_revision")
        return int(revision) if revision is not None and revision.isdecimal() else None


class FailedPrecondition(DitcastError):
    """The loaded pipeline cannot do it, or it needs a reload that was not allowed."""

    @property
    def violations(self) -> tuple[PreconditionViolation, ...]:
        """What stands in the way, one entry each."""
        return tuple(
            PreconditionViolation(violation.type, violation.subject, violation.description)
            for detail in self._details_of(error_details_pb2.PreconditionFailure)
            for violation in detail.violations
        )


class ResourceExhausted(DitcastError):
    """The queue is full (with a delay), or memory does not suffice for this request (without)."""

    @property
    def retry_delay(self) -> timedelta | None:
        """After how long to try again; None: trying again does not help."""
        return self._retry_delay()


class Unavailable(DitcastError):
    """The server is loading, warming up or draining, or its ranks were lost."""

    @property
    def retry_delay(self) -> timedelta | None:
        """After how long to try again; None: trying again does not help."""
        return self._retry_delay()


class Unimplemented(DitcastError):
    """This version of the server does not have the call."""


class DeadlineExceeded(DitcastError):
    """A time limit ran out."""

    @property
    def steps_done(self) -> int | None:
        """Steps that were done; None where the server did not say."""
        return self._steps_done()


class Cancelled(DitcastError):
    """The generation was cancelled, by whomever, or left before its end."""

    @property
    def steps_done(self) -> int | None:
        """Steps that were done; None where the server did not say."""
        return self._steps_done()


class Unauthenticated(DitcastError):
    """No credentials, or wrong ones."""


class PermissionDenied(DitcastError):
    """The credentials do not permit the call."""


class Internal(DitcastError):
    """A fault of the server, or a pipeline that put out no numbers (reason NAN_OUTPUT)."""

    @property
    def error_id(self) -> str | None:
        """The id under which the server's log tells more."""
        return self._metadata("error_id")


class TransportBroken(DitcastError):
    """The connection failed, or something between here and the server ended the call.

    Told from the server's own statuses by the missing ErrorInfo. The generation may live on.
    """


class DataLoss(DitcastError):
    """What arrived is not what the server made: chunks that do not fit, or an early end."""


class DigestMismatch(DataLoss):
    """An output's bytes are not those that the receipt names.

    Attributes:
        output_index: Which output, from 0.
        expected: SHA-256 in the receipt, in hexadecimal.
        actual: SHA-256 of what arrived, in hexadecimal.
    """

    def __init__(self, output_index: int, expected: str, actual: str) -> None:
        super().__init__(
            grpc.StatusCode.DATA_LOSS,
            f"output {output_index} has sha256 {actual}, its receipt says {expected}",
            reason="DIGEST_MISMATCH",
        )
        self.output_index = output_index
        self.expected = expected
        self.actual = actual


CLASSES: Final[Mapping[grpc.StatusCode, type[DitcastError]]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: DitcastError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.OUT_OF_RANGE: DitcastError,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}
"""The class for each code. The contract has no UNKNOWN and no OUT_OF_RANGE, so these have none."""

_TRANSPORT_CODES: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
)


def from_rpc_error(error: grpc.aio.AioRpcError) -> DitcastError:
    """Give the typed error for a call that ended with a status other than OK."""
    code = error.code()
    details = _unpack(error.trailing_metadata())
    reason = next(
        (
            detail.reason
            for detail in details
            if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == DOMAIN
        ),
        None,
    )
    broken = reason is None and code in _TRANSPORT_CODES
    kind = TransportBroken if broken else CLASSES.get(code, DitcastError)
    return kind(code, error.details() or "", reason=reason or "", details=details)


def left_early(steps_done: int) -> Cancelled:
    """Give the error of a generation that its reader left after so many steps."""
    info = error_details_pb2.ErrorInfo(
        domain=DOMAIN, reason=LEFT_EARLY, metadata={"steps_done": str(steps_done)}
    )
    return Cancelled(
        grpc.StatusCode.CANCELLED,
        "the reader left the generation before its end",
        reason=info.reason,
        details=[info],
    )


def malformed(message: str) -> DataLoss:
    """Give the error of a stream whose content contradicts itself."""
    return DataLoss(grpc.StatusCode.DATA_LOSS, message, reason="MALFORMED_STREAM")


def _unpack(trailers: grpc.aio.Metadata) -> tuple[Message, ...]:
    """Read the details out of the trailers; kinds that are not known here are passed over."""
    packed = next((value for key, value in trailers if key == _DETAILS_KEY), b"")
    try:
        status = status_pb2.Status.FromString(packed if isinstance(packed, bytes) else b"")
        return tuple(
            kind.FromString(detail.value)
            for detail in status.details
            for kind in _DETAIL_TYPES
            if detail.TypeName() == kind.DESCRIPTOR.full_name
        )
    except DecodeError:  # something on the way spoilt the trailers; the code still tells the class
        return ()
