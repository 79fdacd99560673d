"""How a generation ended for its client, and whether that keeps the promises.

An outcome with a `problem` breaks one: a gap in the events, other bytes than undisturbed, a status
that says nothing, or no end at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_client import DitcastError, Result

COMPLETED: Final = "completed"
CANCELLED: Final = "CANCELLED CANCELLED"
GONE: Final = "NOT_FOUND GENERATION_NOT_FOUND"
ENDS: Final = frozenset(
    {
        COMPLETED,
        "RESOURCE_EXHAUSTED QUEUE_FULL",
        "UNAVAILABLE DRAINING",
        "UNAVAILABLE LOADING",
        "UNAVAILABLE LOSES_RANKS",
        "UNAVAILABLE RANKS_LOST",
        "UNAVAILABLE STOPPED",
        "UNAVAILABLE WARMING_UP",
    }
)
"""What any generation may end with while ranks and services come and go."""

Bytes = tuple[str, ...]
"""SHA-256 of each output."""
References = Mapping[tuple[str, bytes], Bytes]
"""What undisturbed generations made, by recipe and by the cache that the receipt names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one act of a client, or one fault's own generation, ended."""

    request_id: str
    act: str
    recipe: str
    status: str
    """`completed`, or a code with its reason."""
    seconds: float
    events: int = 0
    restarts: int = 0
    """Of the generation, on new ranks."""
    resent: int = 0
    """How often the client sent it again, to a new service."""
    problem: str = ""
    """Why it breaks a promise; empty: it does not."""

    @property
    def accepted(self) -> bool:
        """Whether it is about a generation that was accepted: it has events."""
        return self.events > 0


class Followed:
    """The events of one generation as they come, held to their order."""

    def __init__(self) -> None:
        self.events = 0
        self.restarts = 0
        self.resent = 0
        self.problem = ""
        self._sequence = 0

    def take(self, event: GenerationEvent) -> None:
        """Count an event; a gap is a problem."""
        kind = event.WhichOneof("kind")
        if kind == "heartbeat":
            return
        self.events += 1
        if event.sequence == 0:  # Of the client: the service is another one, with a log of its own.
            self.resent += 1
            self._sequence = 0
            return
        self.restarts += kind == "restarted"
        if event.sequence != self._sequence + 1 and not self.problem:
            self.problem = f"event {event.sequence} came after {self._sequence}"
        self._sequence = event.sequence


def named(outcome: Outcome) -> str:
    """Name an outcome for a table: what was never accepted is told from what was."""
    if not outcome.request_id:
        return f"configure: {outcome.status}"
    return outcome.status if outcome.accepted else f"refused: {outcome.status}"


def cache_of(result: Result) -> bytes:
    """Give the cache settings that made a result, as its receipt names them."""
    return result.receipt.parameters.cache.SerializeToString(deterministic=True)


def bytes_of(result: Result) -> Bytes:
    """Give what identifies the outputs."""
    return tuple(hashlib.sha256(output.data).hexdigest() for output in result.outputs)


def differs(references: References, recipe: str, result: Result) -> str:
    """Say how a result is not what was made undisturbed; empty: it is the same bytes."""
    expected = references.get((recipe, cache_of(result)))
    if expected is None:
        return "made with settings that nobody asked for"
    return "" if bytes_of(result) == expected else "other bytes than undisturbed"


def status_of(error: DitcastError) -> str:
    """Name how it ended without a result."""
    return f"{error.code.name} {error.reason}".strip()


def unclear(status: str, expected: frozenset[str], *, service_lost: bool) -> str:
    """Say why a status is none that may end a generation; empty: it may.

    A broken transport, whose status has no reason of ours, is clear only where the service itself
    was lost meanwhile.
    """
    if status in expected or (service_lost and " " not in status):
        return ""
    return f"ended with {status}"
