"""Exit codes of the commands, told apart so that scripts can act on them.

The table is `MEANINGS`; the help of each command prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ditcast_client import errors

DONE: Final = 0
FAILED: Final = 1
REFUSED: Final = 2
UNAVAILABLE: Final = 3
TIMED_OUT: Final = 4
DIFFERENT: Final = 5
CANCELLED: Final = 130

MEANINGS: Final[Mapping[int, str]] = {
    DONE: "done",
    FAILED: "failed: a fault of the server, damaged outputs, or no candidate that tune could take",
    REFUSED: "refused: bad usage, or a request that this server does not take",
    UNAVAILABLE: "unavailable: no server there, loading, draining, or its queue is full",
    TIMED_OUT: "a time limit ran out",
    DIFFERENT: "replay: made again, but other bytes; with --check: the server differs",
    CANCELLED: "cancelled: Ctrl-C, `ditcast cancel`, or nobody reads the output any more",
}

HELP: Final = "\n".join(
    ["exit codes:", *(f"  {code:<4} {meaning}" for code, meaning in MEANINGS.items())]
)

_CODES: Final[Mapping[type[errors.DitcastError], int]] = {
    errors.InvalidArgument: REFUSED,
    errors.FailedPrecondition: REFUSED,
    errors.NotFound: REFUSED,
    errors.AlreadyExists: REFUSED,
    errors.Aborted: REFUSED,
    errors.Unimplemented: REFUSED,
    errors.Unauthenticated: REFUSED,
    errors.PermissionDenied: REFUSED,
    errors.Unavailable: UNAVAILABLE,
    errors.TransportBroken: UNAVAILABLE,
    errors.DeadlineExceeded: TIMED_OUT,
    errors.Cancelled: CANCELLED,
}


def exit_code(error: errors.DitcastError) -> int:
    """Give the exit code for an error."""
    if isinstance(error, errors.ResourceExhausted):
        # Without a delay it is memory that does not suffice: trying again later changes nothing.
        return REFUSED if error.retry_delay is None else UNAVAILABLE
    return _CODES.get(type(error), FAILED)
