"""Sends hostile requests to a live server, several at a time, and counts how each call ended.

Hypothesis chooses them by a seed, and makes the smallest burst of one that breaks a promise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.campaigns.hostile.messages import METHODS
from tests.campaigns.hostile.verdict import Ended, Verdict, ended_by, judge
from tests.campaigns.hostile.wire import Sent, sent

from ditcast.v1.diffusion_service_pb2 import GenerateRequest

BURST = 4
"""Requests under way at once."""
LIMIT_SECONDS = 60.0
"""Longest time until a call has ended; all that is asked for takes a second at most."""

_SERVICE = "/ditcast.v1.DiffusionService/"
_LEAVES_EARLY = 16
"""One stream in so many is left after its first event."""


@dataclass(slots=True)
class Counts:
    """What a campaign showed."""

    requests: int = 0
    by_end: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Calls by RPC, status and reason."""
    slowest_seconds: float = 0.0

    def take(self, verdict: Verdict) -> None:
        """Count a call."""
        self.requests += 1
        self.by_end[verdict.method, verdict.code.name, verdict.reason] += 1


class BrokenPromise(AssertionError):
    """A call ended as none may."""


class Caller:
    """Sends bytes, and reads what comes back."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])
        self._calls = 0

    def close(self) -> None:
        """Leave the server."""
        self._channel.close()

    def burst(self, requests: list[Sent]) -> list[Verdict]:
        """Send some at once; give how each ended."""
        begun = [(request, self._begin(request)) for request in requests]
        return [judge(request, self._end(request, call)) for request, call in begun]

    def _begin(self, request: Sent) -> Any:  # noqa: ANN401 (a call, of either kind)
        answer = GetMessageClass(METHODS[request.method].output_type)
        make = self._channel.unary_stream if request.streams else self._channel.unary_unary
        path = _SERVICE + request.method
        called: Any = make(path, _as_it_is, answer.FromString)
        start = called if request.streams else called.future
        return start(request.data, timeout=LIMIT_SECONDS)

    def _end(self, request: Sent, call: Any) -> Ended:  # noqa: ANN401 (a call, of either kind)
        self._calls += 1
        leaves = request.streams and self._calls % _LEAVES_EARLY == 0
        answers: list[Message] = []
        began = time.monotonic()
        try:
            if not request.streams:
                answers.append(call.result())
            for answer in call if request.streams else ():
                answers.append(answer)
                if leaves:
                    call.cancel()
        except grpc.RpcError as error:
            if leaves and answers:
                return Ended(call.code(), "", b"", answers, left=True)
            if time.monotonic() - began >= LIMIT_SECONDS:
                return Ended(grpc.StatusCode.UNKNOWN, "it did not end", b"", answers)
            return ended_by(error, answers)
        return Ended(grpc.StatusCode.OK, "", b"", answers)


def run(
    address: str,
    sound: GenerateRequest,
    requests: int,
    seed_of_all: int,
    on_progress: Callable[[Counts], None],
) -> Counts:
    """Send at least so many requests, made of a sound one among others.

    Raises:
        BrokenPromise: with the smallest burst that does it.
    """
    counts = Counts()
    caller = Caller(address)

    @seed(seed_of_all)
    @settings(
        max_examples=-(-requests // BURST),
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(st.lists(sent(sound), min_size=BURST, max_size=BURST))
    def hold(burst: list[Sent]) -> None:
        began = time.monotonic()
        verdicts = caller.burst(burst)
        counts.slowest_seconds = max(counts.slowest_seconds, time.monotonic() - began)
        for request, verdict in zip(burst, verdicts, strict=True):
            counts.take(verdict)
            if verdict.fault:
                message = f"{request.method}: {verdict.fault}\n{request.data!r:.2000}\n"
                raise BrokenPromise(f"{message}{str(request.message)[:2000]}")
        on_progress(counts)

    try:
        hold()
    finally:
        caller.close()
    return counts


def _as_it_is(data: bytes) -> bytes:
    return data
