"""What a generation gave, gathered from its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ditcast.v1.generation_pb2 import (
    CacheReport,
    Completed,
    GenerationEvent,
    RankMemory,
    Receipt,
    ShadowComparison,
    Started,
    Timings,
)
from ditcast_client.errors import malformed
from ditcast_client.outputs import Output, OutputAssembly


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a generation gave. After `validate_only`, only `request_id` and `started` are filled."""

    request_id: str
    started: Started
    """The resolved parameters, and what the generation ran on."""
    outputs: tuple[Output, ...]
    """In order; each is checked against the receipt."""
    receipt: Receipt
    """All that it takes to make the same bytes again."""
    timings: Timings
    """Where the time went."""
    cache: CacheReport
    """Which steps were computed, cached and pruned."""
    memory: Sequence[RankMemory]
    """One entry a rank."""
    shadow: ShadowComparison | None = None
    """How the outputs compare to those without a cache. None: not asked for, or not made."""

    @property
    def seed(self) -> int:
        """The seed of output 0; output i was made with seed + i modulo 2^64."""
        return self.started.parameters.seed


class EventRecord:
    """Gathers what the events of one generation tell, for its result.

    From events that begin in the middle (`partial`) it puts no outputs together.
    """

    def __init__(self, *, validate_only: bool, partial: bool = False) -> None:
        self.steps_done = 0
        self._validate_only = validate_only
        self._partial = partial
        self._assembly = OutputAssembly()
        self._started: Started | None = None
        self._completed: Completed | None = None

    @property
    def finished(self) -> bool:
        """Whether the last event of a generation that succeeded has come."""
        return (self._started if self._validate_only else self._completed) is not None

    def take(self, event: GenerationEvent) -> None:
        """Note an event; kinds that are not known here are passed over.

        Raises:
            DataLoss: A chunk does not fit those before it.
        """
        match event.WhichOneof("kind"):
            case "started":
                self._started = event.started
            case "step_completed":
                self.steps_done = event.step_completed.step
            case "restarted":
                self.steps_done = 0
                self._assembly.void()
            case "output_chunk" if not self._partial:
                self._assembly.take(event.output_chunk)
            case "completed":
                self._completed = event.completed

    def result(self, request_id: str) -> Result:
        """Give the result.

        Raises:
            DataLoss: The events do not make a whole result.
        """
        if self._started is None or not self.finished:
            raise malformed("the stream ended well, but before the last event")
        completed = self._completed or Completed()
        return Result(
            request_id=request_id,
            started=self._started,
            outputs=self._assembly.finish(completed.receipt.outputs),
            receipt=completed.receipt,
            timings=completed.timings,
            cache=completed.cache,
            memory=tuple(completed.memory),
            shadow=completed.shadow if completed.HasField("shadow") else None,
        )
