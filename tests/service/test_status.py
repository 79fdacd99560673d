"""Every failure has its status of the contract, with details that fit into trailers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.rpc import error_details_pb2 as details
from structlog.testing import capture_logs

from ditcast_runtime import errors
from ditcast_runtime.settings import Problem
from ditcast_service.refusals import (
    ConfigurationChanged,
    MissingScope,
    NeedsReload,
    NotAppliedInTime,
    RevisionMismatch,
    TuneRunning,
    Unauthenticated,
    UnknownAdapterFile,
)
from ditcast_service.status import Fault, status_of

SOON = timedelta(seconds=2)
MANY = tuple(Problem(f"pipeline_kwargs.{'ü' * 300}{n}", "é" * 2000) for n in range(200))


def limit_reached(client: str, retry_after: timedelta | None) -> errors.ClientLimitReached:
    """Make what a client is told that asks for one more than it may have."""
    name = "max_queued_per_client"
    return errors.ClientLimitReached(
        client, name, held=4, bound=4, asked=1, retry_after=retry_after
    )


CASES = [
    (errors.InvalidRequest((Problem("width", "no"),)), 3, "INVALID_REQUEST", "BadRequest"),
    (errors.UnsupportedRequest((Problem("a", "b"),)), 9, "UNSUPPORTED", "PreconditionFailure"),
    (errors.PipelineRefused("pipeline_kwargs", "no"), 3, "PIPELINE_REFUSED", "BadRequest"),
    (errors.QueueFull(64, 64, SOON), 8, "QUEUE_FULL", "QuotaFailure RetryInfo"),
    (limit_reached("caller:studio", SOON), 8, "CLIENT_LIMIT", "QuotaFailure RetryInfo"),
    (limit_reached("caller:" + "x" * 5000, None), 8, "CLIENT_LIMIT", "QuotaFailure"),
    (errors.TooManyBytes(1, 2, SOON), 8, "BYTES_IN_FLIGHT", "QuotaFailure RetryInfo"),
    (errors.CannotMeetDeadline(SOON, SOON), 4, "CANNOT_MEET_TIME_LIMIT", ""),
    (errors.OutOfMemory((0, 1)), 8, "OUT_OF_MEMORY", "QuotaFailure"),
    (errors.ResultNotKept("disk full"), 8, "RESULT_NOT_KEPT", "QuotaFailure"),
    (errors.ReaderTimeout(), 8, "READER_TIMEOUT", ""),
    (errors.NotServing("DRAINING", SOON), 14, "DRAINING", "RetryInfo"),
    (errors.RanksLost(1, "rank 1 was killed", SOON), 14, "RANKS_LOST", "RetryInfo"),
    (errors.LosesRanks(2, "at step 3 twice"), 14, "LOSES_RANKS", ""),
    (errors.GenerationCancelled(3), 1, "CANCELLED", ""),
    (errors.DeadlineExceeded(3), 4, "DEADLINE_EXCEEDED", ""),
    (errors.PipelineFailed("id", "TypeError", 2), 13, "PIPELINE_FAILED", ""),
    (errors.NanOutput("id"), 13, "NAN_OUTPUT", ""),
    (errors.UnknownGeneration("x"), 5, "GENERATION_NOT_FOUND", "ResourceInfo"),
    (errors.RequestIdReused("x" * 5000), 6, "REQUEST_ID_REUSED", "ResourceInfo"),
    (errors.UnknownRevision(3), 5, "REVISION_NOT_FOUND", "ResourceInfo"),
    (errors.ChangeRefused((Problem("cache", "b"),)), 9, "CHANGE_REFUSED", "PreconditionFailure"),
    (errors.ReloadFailed("out of memory"), 9, "RELOAD_FAILED", "PreconditionFailure"),
    (RevisionMismatch(2, 3), 10, "REVISION_MISMATCH", ""),
    (NeedsReload((Problem("quantize", "b"),)), 9, "NEEDS_RELOAD", "PreconditionFailure"),
    (errors.UnknownAdapter("x"), 5, "ADAPTER_NOT_FOUND", "ResourceInfo"),
    (UnknownAdapterFile("x" * 5000), 5, "ADAPTER_FILE_NOT_FOUND", "ResourceInfo"),
    (errors.AdapterNameTaken("x", "y"), 6, "ADAPTER_NAME_TAKEN", "ResourceInfo"),
    (errors.AdapterRefused("x", "y"), 9, "ADAPTER_REFUSED", "PreconditionFailure"),
    (NotAppliedInTime(), 4, "NOT_APPLIED", ""),
    (TuneRunning(SOON), 8, "TUNE_RUNNING", "QuotaFailure RetryInfo"),
    (ConfigurationChanged(1, 2), 10, "CONFIGURATION_CHANGED", ""),
    (Unauthenticated("the token is not known"), 16, "UNAUTHENTICATED", ""),
    (MissingScope("admin"), 7, "MISSING_SCOPE", ""),
    (Fault("id"), 13, "INTERNAL_ERROR", ""),
    (errors.InvalidRequest(MANY), 3, "INVALID_REQUEST", "BadRequest"),
    (errors.UnsupportedRequest(MANY), 9, "UNSUPPORTED", "PreconditionFailure"),
    (errors.PipelineRefused("pipeline_kwargs", "é" * 90_000), 3, "PIPELINE_REFUSED", "BadRequest"),
]


@pytest.mark.parametrize(("failure", "code", "reason", "extra"), CASES)
def test_each_failure_has_its_status(
    failure: errors.RuntimeFailure, code: int, reason: str, extra: str
) -> None:
    """ErrorInfo always, with our domain; beside it what the contract's table names; under 4 KiB."""
    status = status_of(failure)
    assert status.code == code
    info = details.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("ditcast", reason)
    names = [each.type_url.rpartition(".")[2] for each in status.details[1:]]
    assert " ".join(names) == extra
    assert len(status.SerializeToString()) * 4 / 3 < 4096
    assert len(status.message) < 1024


def test_no_failure_is_forgotten() -> None:
    """Every subclass of RuntimeFailure is in the table above."""
    tested = {type(failure) for failure, *_ in CASES}
    assert set(errors.RuntimeFailure.__subclasses__()) <= tested


def test_thirty_two_violations_and_the_rest_is_counted() -> None:
    """Short problems are given 32 at once, and what was left out stands in the ErrorInfo."""
    problems = tuple(Problem(f"f{n}", "bad") for n in range(40))
    status = status_of(errors.InvalidRequest(problems))
    info, bad = details.ErrorInfo(), details.BadRequest()
    status.details[0].Unpack(info)
    status.details[1].Unpack(bad)
    assert len(bad.field_violations) == 32
    assert info.metadata["violations_left_out"] == "8"


def test_a_client_at_its_limit_is_named_and_so_is_the_limit() -> None:
    """Under the name that the settings, the capabilities and the file of callers have for it."""
    info, quota = details.ErrorInfo(), details.QuotaFailure()
    status = status_of(limit_reached("caller:studio", SOON))
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(quota)
    assert info.metadata["limit"] == "max_queued_per_client"
    [violation] = quota.violations
    assert violation.subject == "caller:studio"
    assert violation.description == "max_queued_per_client: 4 of 4 are taken, 1 more asked"


def test_steps_done_stand_in_the_details_of_what_was_stopped() -> None:
    """Other readers of a cancelled generation learn how far it came."""
    info = details.ErrorInfo()
    status_of(errors.GenerationCancelled(7)).details[0].Unpack(info)
    assert info.metadata["steps_done"] == "7"


def test_a_failure_that_nobody_classified_is_a_bug_with_an_id_in_the_log() -> None:
    """No INTERNAL without an id, so that what a caller shows can be found."""
    with capture_logs() as lines:
        status = status_of(errors.RuntimeFailure("of a new kind"))
    info = details.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, info.reason) == (13, "INTERNAL_ERROR")
    [line] = lines
    assert line["error_id"] == info.metadata["error_id"]
    assert line["error_id"] in status.message
    assert "of a new kind" not in status.message
