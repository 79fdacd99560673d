"""How a call ended, and whether that keeps the promises made to a caller who sends anything.

A fault is: a status that blames the server or says nothing, a refusal without fields or with ones
that the contract does not have, a stream without its end, or no answer in time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from tests.campaigns.hostile import paths
from tests.campaigns.hostile.messages import METHODS
from tests.campaigns.hostile.wire import Sent

from ditcast.v1 import diffusion_service_pb2 as pb

MAY_END: frozenset[grpc.StatusCode] = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)
"""What a caller may be told by a server that serves: no INTERNAL, UNKNOWN or UNAVAILABLE."""

_TRAILER = "grpc-status-details-bin"
_MOST_DETAIL_BYTES = 3072
"""base64 makes 4 KiB of them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one call ended."""

    method: str
    code: grpc.StatusCode
    reason: str
    """Of the status, in UPPER_SNAKE; empty with OK."""
    fault: str
    """Which promise it breaks; empty: none."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What came back: messages, then a status."""

    code: grpc.StatusCode
    text: str
    details: bytes
    answers: Sequence[Message]
    left: bool = False
    """Whether the caller hung up itself."""


def judge(sent: Sent, ended: Ended) -> Verdict:
    """Hold the end of a call to the contract."""
    status = Status.FromString(ended.details)
    reason = _reason(status)
    fault = next(_faults(sent, ended, status, reason), "")
    return Verdict(sent.method, ended.code, reason, fault)


def ended_by(error: grpc.RpcError, answers: Sequence[Message]) -> Ended:
    """Read the status that ended a call."""
    call: Any = error
    trailers = call.trailing_metadata() or ()
    details = next((value for key, value in trailers if key == _TRAILER), b"")
    return Ended(call.code(), call.details() or "", details, answers)


def _faults(sent: Sent, ended: Ended, status: Status, reason: str) -> Iterator[str]:
    if ended.left:
        return
    if ended.code not in MAY_END:
        yield f"it ended with {ended.code.name}: {ended.text}"
    if ended.code is grpc.StatusCode.OK:
        yield from _incomplete(sent, ended)
        yield from _unknown_outcomes(ended)
        return
    if not reason:
        yield f"{ended.code.name} has no ErrorInfo of ours: {ended.text}"
    if len(ended.details) > _MOST_DETAIL_BYTES:
        yield f"the details have {len(ended.details)} bytes"
    yield from _unnamed(sent, ended, status)


def _incomplete(sent: Sent, ended: Ended) -> Iterator[str]:
    """Say what is missing from a stream that ended well."""
    if not sent.streams:
        return
    answers: Sequence[Any] = ended.answers
    kinds = [str(answer.event.WhichOneof("kind")) for answer in answers]
    message = sent.message
    validated = isinstance(message, pb.GenerateRequest) and message.validate_only
    last = kinds[-1] if kinds else "nothing"
    if last != ("started" if validated else "completed"):
        yield f"the stream ended well with {last}"
    if "restarted" in kinds:
        yield "the ranks were lost"


def _unknown_outcomes(ended: Ended) -> Iterator[str]:
    for answer in ended.answers:
        if isinstance(answer, pb.ConfigureResponse):
            for outcome in answer.outcomes:
                if outcome.reason.startswith("there is no such path"):
                    continue  # It repeats what the caller named.
                if not paths.exists(outcome.path, pb.ConfigureRequest.DESCRIPTOR):
                    yield f"an outcome names no field: {outcome.path!r}"


def _unnamed(sent: Sent, ended: Ended, status: Status) -> Iterator[str]:
    """Say which refusal names no field, or one that there is not."""
    named = [*_violations(status)]
    if ended.code is grpc.StatusCode.INVALID_ARGUMENT and not named:
        yield "INVALID_ARGUMENT names no field"
    message: Any = sent.message
    own = set(message.update_mask.paths) if isinstance(message, pb.ConfigureRequest) else set()
    kind = METHODS[sent.method].input_type
    for field, description in named:
        if not description:
            yield f"{field} is refused without a reason"
        if field == "" and message is None:
            continue  # The bytes are no message: there are no fields.
        if paths.exists(field, kind) or any(
            path.startswith(field.removesuffix("...")) for path in own
        ):
            continue
        yield f"{ended.code.name} names no field of the request: {field!r} ({description})"


def _violations(status: Status) -> Iterator[tuple[str, str]]:
    bad, unmet = error_details_pb2.BadRequest(), error_details_pb2.PreconditionFailure()
    for detail in status.details:
        if detail.Unpack(bad):
            yield from ((each.field, each.description) for each in bad.field_violations)
        if detail.Unpack(unmet):
            yield from ((each.subject, each.description) for each in unmet.violations)


def _reason(status: Status) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == "ditcast":
            return str(info.reason)
    return ""
