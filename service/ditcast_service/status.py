"""The one place that turns a failure into a status of gRPC with google.rpc details.

The type of the failure decides; its text is only shown. Details are kept small because proxies
limit trailers, so long reasons are shortened and what did not fit is counted.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import NoReturn, cast

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status
from grpc import aio

from ditcast_runtime import errors
from ditcast_runtime.settings import Problem
from ditcast_service import refusals

DOMAIN = "ditcast"
MAX_VIOLATIONS = 32
MAX_STATUS_BYTES = 3000
"""base64, as trailers carry it, makes this 4000: under the contract's 4 KiB."""
MAX_MESSAGE_CHARACTERS = 240
MAX_FIELD_CHARACTERS = 96
REASON_CHARACTERS = (400, 200, 120, 80, 50, 30)
"""Tried in turn until the details fit."""

_NAMED = 2
"""Problems that stand in the message itself, for readers who see no details."""

_log = structlog.get_logger(__name__)

_Pack = Callable[[int, int], Message]
"""Make the detail with reasons of so many characters for so many problems."""


class Fault(errors.RuntimeFailure):
    """A bug of ours in the service process.

    Attributes:
        error_id: stands in the log beside the traceback.
    """

    def __init__(self, error_id: str) -> None:
        self.error_id = error_id
        super().__init__(f"Internal error; see {error_id} in the server's log.")


def fault(error: Exception) -> Fault:
    """Log a bug under an id, with its traceback, and give what its caller is told."""
    made = Fault(secrets.token_hex(6))
    _log.error("rpc failed", error_id=made.error_id, exc_info=error)
    return made


def status_of(failure: errors.RuntimeFailure) -> Status:  # noqa: PLR0911 (a table)
    """Give the status for a failure; every one carries an ErrorInfo."""
    match failure:
        case errors.InvalidRequest(problems=problems):
            return _invalid(problems)
        case errors.UnsupportedRequest(problems=problems):
            return _precondition(problems, "UNSUPPORTED")
        case errors.PipelineRefused(field=field, reason=reason):
            violation = details.BadRequest.FieldViolation(
                field=field, description=_short(reason, 400)
            )
            refused = details.BadRequest(field_violations=[violation])
            return _status(grpc.StatusCode.INVALID_ARGUMENT, failure, "PIPELINE_REFUSED", refused)
        case errors.UnknownGeneration(request_id=request_id):
            resource = _generation(request_id)
            return _status(grpc.StatusCode.NOT_FOUND, failure, "GENERATION_NOT_FOUND", resource)
        case errors.RequestIdReused(request_id=request_id):
            resource = _generation(request_id)
            return _status(grpc.StatusCode.ALREADY_EXISTS, failure, "REQUEST_ID_REUSED", resource)
        case errors.GenerationCancelled(steps_done=steps):
            return _status(grpc.StatusCode.CANCELLED, failure, "CANCELLED", steps_done=steps)
        case errors.DeadlineExceeded(steps_done=steps):
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            return _status(code, failure, "DEADLINE_EXCEEDED", steps_done=steps)
        case errors.CannotMeetDeadline(limit=limit, estimate=estimate):
            return _status(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                failure,
                "CANNOT_MEET_TIME_LIMIT",
                limit_seconds=limit.total_seconds(),
                estimate_seconds=estimate.total_seconds(),
            )
        case _:
            return _of_callers(failure) or _of_changes(failure) or _exhausted(failure)


def _of_callers(failure: errors.RuntimeFailure) -> Status | None:
    """Cover who may not."""
    match failure:
        case refusals.Unauthenticated():
            return _status(grpc.StatusCode.UNAUTHENTICATED, failure, "UNAUTHENTICATED")
        case refusals.MissingScope(scope=scope):
            code = grpc.StatusCode.PERMISSION_DENIED
            return _status(code, failure, "MISSING_SCOPE", scope=scope)
        case _:
            return None


def _of_changes(failure: errors.RuntimeFailure) -> Status | None:
    """Cover what only a change, or asking for one, can meet."""
    return _of_adapters(failure) or _of_configure(failure)


def _of_adapters(failure: errors.RuntimeFailure) -> Status | None:
    match failure:
        case errors.UnknownAdapter(name=name):
            resource = _resource("Adapter", name)
            return _status(grpc.StatusCode.NOT_FOUND, failure, "ADAPTER_NOT_FOUND", resource)
        case refusals.UnknownAdapterFile(file=file):
            resource = _resource("AdapterFile", file)
            return _status(grpc.StatusCode.NOT_FOUND, failure, "ADAPTER_FILE_NOT_FOUND", resource)
        case errors.AdapterNameTaken(name=name):
            resource = _resource("Adapter", name)
            return _status(grpc.StatusCode.ALREADY_EXISTS, failure, "ADAPTER_NAME_TAKEN", resource)
        case errors.AdapterRefused(reason=reason):
            return _precondition((Problem("file", reason),), "ADAPTER_REFUSED")
        case _:
            return None


def _of_configure(failure: errors.RuntimeFailure) -> Status | None:  # noqa: PLR0911 (a table)
    """Cover what only a change of the configuration, or asking for one, can meet."""
    match failure:
        case errors.UnknownRevision(revision=revision):
            resource = _resource("Configuration", str(revision))
            return _status(grpc.StatusCode.NOT_FOUND, failure, "REVISION_NOT_FOUND", resource)
        case refusals.RevisionMismatch(current=current):
            code = grpc.StatusCode.ABORTED
            return _status(code, failure, "REVISION_MISMATCH", current_revision=current)
        case refusals.ConfigurationChanged(current=current):
            code = grpc.StatusCode.ABORTED
            return _status(code, failure, "CONFIGURATION_CHANGED", current_revision=current)
        case refusals.NotAppliedInTime():
            return _status(grpc.StatusCode.DEADLINE_EXCEEDED, failure, "NOT_APPLIED")
        case refusals.NeedsReload(problems=problems):
            return _precondition(problems, "NEEDS_RELOAD")
        case errors.ChangeRefused(problems=problems):
            return _precondition(problems, "CHANGE_REFUSED")
        case errors.ReloadFailed(cause=cause):
            return _precondition((Problem("configuration", cause),), "RELOAD_FAILED")
        case _:
            return None


def _exhausted(failure: errors.RuntimeFailure) -> Status:  # noqa: PLR0911 (a table)
    """Cover what there is too little of: places, bytes, memory, room, patience."""
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    match failure:
        case errors.QueueFull(queue_depth=depth, capacity=capacity, retry_after=after):
            quota = _quota("queue", f"{depth} of {capacity} places are taken")
            return _status(code, failure, "QUEUE_FULL", quota, _retry(after))
        case errors.ClientLimitReached(client=client, limit=limit, retry_after=after):
            text = (
                f"{limit}: {failure.held} of {failure.bound} are taken, {failure.asked} more asked"
            )
            retry = () if after is None else (_retry(after),)
            quota = _quota(client, text)
            return _status(code, failure, "CLIENT_LIMIT", quota, *retry, limit=limit)
        case errors.TooManyBytes(bytes_in_flight=taken, limit=limit, retry_after=after):
            quota = _quota("bytes_in_flight", f"{taken} of {limit} bytes are taken")
            return _status(code, failure, "BYTES_IN_FLIGHT", quota, _retry(after))
        case refusals.TuneRunning(retry_after=after):
            quota = _quota("tune", "one runs at a time")
            return _status(code, failure, "TUNE_RUNNING", quota, _retry(after))
        case errors.OutOfMemory(ranks=ranks):
            quota = _quota("memory", f"ranks {list(ranks)} ran out of memory for this request")
            return _status(code, failure, "OUT_OF_MEMORY", quota)
        case errors.ResultNotKept(cause=cause):
            quota = _quota("retention", cause)
            return _status(code, failure, "RESULT_NOT_KEPT", quota)
        case errors.ReaderTimeout():
            return _status(code, failure, "READER_TIMEOUT")
        case _:
            return _unavailable_or_internal(failure)


def _unavailable_or_internal(failure: errors.RuntimeFailure) -> Status:  # noqa: PLR0911 (a table)
    """Cover what is the matter with the service itself."""
    match failure:
        case errors.NotServing(reason=reason, retry_after=after, stage=stage):
            told = {"stage": stage} if stage else {}
            return _status(grpc.StatusCode.UNAVAILABLE, failure, reason, _retry(after), **told)
        case errors.RanksLost(epoch=epoch, retry_after=after):
            code = grpc.StatusCode.UNAVAILABLE
            return _status(code, failure, "RANKS_LOST", _retry(after), epoch=epoch)
        case errors.LosesRanks(epoch=epoch):
            # Without RetryInfo: it would lose the next ranks too.
            return _status(grpc.StatusCode.UNAVAILABLE, failure, "LOSES_RANKS", epoch=epoch)
        case errors.NanOutput(error_id=error_id):
            return _status(grpc.StatusCode.INTERNAL, failure, "NAN_OUTPUT", error_id=error_id)
        case errors.PipelineFailed(error_id=error_id, step=step):
            code = grpc.StatusCode.INTERNAL
            return _status(code, failure, "PIPELINE_FAILED", error_id=error_id, steps_done=step)
        case Fault(error_id=error_id):
            return _status(grpc.StatusCode.INTERNAL, failure, "INTERNAL_ERROR", error_id=error_id)
        case _:
            # A failure that nobody has given a status: a bug like any other.
            return status_of(fault(failure))


def code_of(status: Status) -> grpc.StatusCode:
    """Give the code as gRPC has it."""
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)


async def abort(context: aio.ServicerContext[Message, Message], status: Status) -> NoReturn:
    """End the RPC with `status` and its details; never returns normally.

    Raises:
        aio.AbortError: always, so that nothing after it runs.
    """
    code = code_of(status)
    trailer = ("grpc-status-details-bin", status.SerializeToString())
    # Those that are set already would be dropped.
    others = cast("Iterable[tuple[str, str | bytes]]", context.trailing_metadata() or ())
    await context.abort(code, status.message, (*others, trailer))


def _invalid(problems: Sequence[Problem]) -> Status:
    def pack(length: int, count: int) -> Message:
        violation = details.BadRequest.FieldViolation
        return details.BadRequest(  # type: ignore[no-any-return]
            field_violations=[
                violation(
                    field=_short(problem.field, MAX_FIELD_CHARACTERS),
                    description=_short(problem.reason, length),
                )
                for problem in problems[:count]
            ]
        )

    return _fitted(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", problems, pack)


def _precondition(problems: Sequence[Problem], kind: str) -> Status:
    """Give FAILED_PRECONDITION; `kind` is the reason, and the type of each violation."""

    def pack(length: int, count: int) -> Message:
        violation = details.PreconditionFailure.Violation
        return details.PreconditionFailure(  # type: ignore[no-any-return]
            violations=[
                violation(
                    type=kind,
                    subject=_short(problem.field, MAX_FIELD_CHARACTERS),
                    description=_short(problem.reason, length),
                )
                for problem in problems[:count]
            ]
        )

    return _fitted(grpc.StatusCode.FAILED_PRECONDITION, kind, problems, pack)


def _fitted(code: grpc.StatusCode, reason: str, problems: Sequence[Problem], pack: _Pack) -> Status:
    """Shorten reasons first, then leave problems out, until the status fits."""
    most = min(len(problems), MAX_VIOLATIONS)
    attempts = [(length, most) for length in REASON_CHARACTERS]
    attempts += [(REASON_CHARACTERS[-1], count) for count in range(most - 1, 0, -1)]
    statuses = (
        _packed(code, reason, problems, pack(length, count), count) for length, count in attempts
    )
    # The last attempt, one violation of a bounded length, always fits.
    return next(status for status in statuses if status.ByteSize() <= MAX_STATUS_BYTES)


def _packed(
    code: grpc.StatusCode, reason: str, problems: Sequence[Problem], detail: Message, count: int
) -> Status:
    left_out, rest = len(problems) - count, len(problems) - _NAMED
    first = "; ".join(_line(problem) for problem in problems[:_NAMED])
    more = f" (and {rest} more)" if rest > 0 else ""
    metadata = {"violations_left_out": str(left_out)} if left_out else {}
    return _assemble(code, _short(first, MAX_MESSAGE_CHARACTERS) + more, reason, metadata, [detail])


def _status(
    code: grpc.StatusCode,
    failure: errors.RuntimeFailure,
    reason: str,
    *extra: Message,
    **metadata: object,
) -> Status:
    texts = {key: str(value) for key, value in metadata.items()}
    return _assemble(code, _short(str(failure), MAX_MESSAGE_CHARACTERS), reason, texts, extra)


def _assemble(
    code: grpc.StatusCode,
    message: str,
    reason: str,
    metadata: dict[str, str],
    extra: Iterable[Message],
) -> Status:
    info = details.ErrorInfo(domain=DOMAIN, reason=reason, metadata=metadata)
    packed = []
    for message_of_detail in (info, *extra):
        box = any_pb2.Any()
        box.Pack(message_of_detail)
        packed.append(box)
    return Status(code=code.value[0], message=message, details=packed)


def _line(problem: Problem) -> str:
    return f"{problem.field}: {problem.reason}" if problem.field else problem.reason


def _generation(request_id: str) -> details.ResourceInfo:
    return _resource("Generation", request_id)


def _resource(kind: str, name: str) -> details.ResourceInfo:
    return details.ResourceInfo(resource_type=f"ditcast.v1.{kind}", resource_name=_short(name, 128))


def _quota(subject: str, description: str) -> details.QuotaFailure:
    violation = details.QuotaFailure.Violation(
        subject=_short(subject, 128), description=_short(description, 400)
    )
    return details.QuotaFailure(violations=[violation])


def _retry(after: timedelta) -> details.RetryInfo:
    info = details.RetryInfo()
    info.retry_delay.FromTimedelta(after)
    return info


def _short(text: str, characters: int) -> str:
    """Cut `text` to at most so many bytes of UTF-8, with an ellipsis for what is gone."""
    data = text.encode("utf-8", errors="replace")
    if len(data) <= characters:
        return data.decode()
    return data[: characters - 3].decode(errors="ignore") + "..."
