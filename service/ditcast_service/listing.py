"""Pages of generations, the newest first.

A page goes on after the last one of the page before, by the order in which they were accepted: so
pages neither repeat nor skip anything while generations come and go.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1 import generation_pb2
from ditcast_runtime.errors import InvalidRequest
from ditcast_runtime.generation import State
from ditcast_runtime.settings import Problem
from ditcast_runtime.summary import Summary
from ditcast_service.translate.events import state_number, summary_to_proto

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_SERIAL = struct.Struct(">Q")
_STATES = {state_number(state): state for state in State}


def page(
    summaries: Sequence[Summary], request: pb.ListGenerationsRequest
) -> pb.ListGenerationsResponse:
    """Cut the page that is asked for out of all, the newest first.

    Raises:
        InvalidRequest: no such state, size or token.
    """
    problems: list[Problem] = []
    size, before = _size(request, problems), _serial(request.page_token, problems)
    states = _states(request, problems)
    if problems:
        raise InvalidRequest(tuple(problems))
    wanted = [
        summary
        for summary in summaries
        if (before is None or summary.serial < before) and summary.state in states
    ]
    shown = wanted[:size]
    return pb.ListGenerationsResponse(
        generations=[summary_to_proto(summary) for summary in shown],
        next_page_token=_token(shown[-1].serial) if len(wanted) > size else "",
    )


def _size(request: pb.ListGenerationsRequest, problems: list[Problem]) -> int:
    if not 0 <= request.page_size <= MAX_PAGE_SIZE:
        reason = f"{request.page_size} is out of range: 0 to {MAX_PAGE_SIZE}"
        problems.append(Problem("page_size", reason))
    return request.page_size or DEFAULT_PAGE_SIZE


def _states(request: pb.ListGenerationsRequest, problems: list[Problem]) -> set[State]:
    problems += [
        Problem(f"states[{index}]", f"there is no state {number} to ask for")
        for index, number in enumerate(request.states)
        if number not in _STATES
    ]
    asked: Sequence[generation_pb2.GenerationState.ValueType] = request.states
    return {_STATES[number] for number in asked if number in _STATES} or set(State)


def _token(serial: int) -> str:
    return base64.urlsafe_b64encode(_SERIAL.pack(serial)).decode().rstrip("=")


def _serial(token: str, problems: list[Problem]) -> int | None:
    if not token:
        return None
    try:
        packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        serial: int = _SERIAL.unpack(packed)[0]
    except (binascii.Error, struct.error, ValueError):
        problems.append(Problem("page_token", "it is none that this server gave"))
        return None
    return serial
