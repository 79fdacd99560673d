"""How a generation or the service can fail, as types that carry the data.

The type decides the status (`ditcast_service.status`); nothing is ever classified by its text.
"""

from __future__ import annotations

from datetime import timedelta

from ditcast_runtime.settings import Problem


class ConfigError(Exception):
    """What the operator asked for at the start cannot be served.

    Attributes:
        problems: one entry a field, with the value and the bound in its reason.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{problem.field}: {problem.reason}" for problem in problems))


class RuntimeFailure(Exception):
    """What can end a generation, or refuse one; subclasses say which."""


class InvalidRequest(RuntimeFailure):
    """Fields out of range, of the wrong shape, or not taken by this pipeline.

    Attributes:
        problems: every wrong field at once.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.field}: {problem.reason}" for problem in problems))


class UnsupportedRequest(RuntimeFailure):
    """The values are sound, but this pipeline or group lacks the feature.

    Attributes:
        problems: every feature that is missing, by the field that asks for it.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.field}: {problem.reason}" for problem in problems))


class QueueFull(RuntimeFailure):
    """The queue holds as many generations as it may.

    Attributes:
        queue_depth: generations that wait.
        capacity: how many may wait.
        retry_after: when a place is likely to be free.
    """

    def __init__(self, queue_depth: int, capacity: int, retry_after: timedelta) -> None:
        self.queue_depth = queue_depth
        self.capacity = capacity
        self.retry_after = retry_after
        super().__init__(f"The queue is full: {queue_depth} of {capacity} places are taken.")


class TooManyBytes(RuntimeFailure):
    """The pixels of what is accepted and not finished leave no room for these.

    Attributes:
        bytes_in_flight: what they take now.
        limit: what they may take.
        retry_after: when there is likely to be room.
    """

    def __init__(self, bytes_in_flight: int, limit: int, retry_after: timedelta) -> None:
        self.bytes_in_flight = bytes_in_flight
        self.limit = limit
        self.retry_after = retry_after
        super().__init__(f"{bytes_in_flight} of {limit} bytes in flight are taken.")


class ClientLimitReached(RuntimeFailure):
    """One client may not have more at once than it has; the others may.

    Attributes:
        client: who it is, such as "caller:studio" or "clientip:10.0.0.7".
        limit: the name of the limit, such as max_queued_per_client.
        held: what the client has of it now.
        bound: what it may have.
        asked: what it asked for beyond.
        retry_after: when there is likely to be room; None: never for so much at once.
    """

    def __init__(
        self,
        client: str,
        limit: str,
        *,
        held: int,
        bound: int,
        asked: int,
        retry_after: timedelta | None,
    ) -> None:
        self.client = client
        self.limit = limit
        self.held = held
        self.bound = bound
        self.asked = asked
        self.retry_after = retry_after
        super().__init__(f"{limit} of {client}: {asked} more with {held} of {bound} taken.")


class CannotMeetDeadline(RuntimeFailure):
    """Refused at once: by what was measured, it would take far longer than its time limit.

    Attributes:
        limit: its time limit.
        estimate: how long it takes, by measurements of its own kind and of those before it.
    """

    def __init__(self, limit: timedelta, estimate: timedelta) -> None:
        self.limit = limit
        self.estimate = estimate
        text = f"{estimate.total_seconds():.1f} s, over its limit of {limit.total_seconds():.1f} s"
        super().__init__(f"The generation would take about {text}.")


class NotServing(RuntimeFailure):
    """The service takes no new generation now.

    Attributes:
        reason: an UPPER_SNAKE word: LOADING, WARMING_UP, DRAINING.
        retry_after: when it is worth asking again.
        stage: what the ranks that start are doing; empty: none start, or none has said so.
    """

    def __init__(self, reason: str, retry_after: timedelta, stage: str = "") -> None:
        self.reason = reason
        self.retry_after = retry_after
        self.stage = stage
        doing = f" ({stage})" if stage else ""
        super().__init__(f"The service takes no generations now: {reason.lower()}{doing}.")


class RanksLost(RuntimeFailure):
    """The group died or was killed while it ran the generation.

    Attributes:
        epoch: the epoch of the lost group.
        explanation: what was seen, such as "rank 1 was killed by SIGKILL".
        retry_after: when a fresh group is likely to serve.
    """

    def __init__(self, epoch: int, explanation: str, retry_after: timedelta) -> None:
        self.epoch = epoch
        self.explanation = explanation
        self.retry_after = retry_after
        super().__init__(f"The ranks of epoch {epoch} were lost: {explanation}.")


class LosesRanks(RuntimeFailure):
    """This generation lost its ranks in a way that another try would repeat; its id is kept.

    Attributes:
        epoch: the epoch of the group that it lost last.
        explanation: what repeated itself.
    """

    def __init__(self, epoch: int, explanation: str) -> None:
        self.epoch = epoch
        self.explanation = explanation
        super().__init__(f"The generation loses its ranks, last of epoch {epoch}: {explanation}.")


class UnknownRevision(RuntimeFailure):
    """No configuration is kept under this revision.

    Attributes:
        revision: the one that was asked for.
    """

    def __init__(self, revision: int) -> None:
        self.revision = revision
        super().__init__(f"No configuration is kept under revision {revision}.")


class GenerationCancelled(RuntimeFailure):
    """Somebody cancelled it, or its last reader left.

    Attributes:
        steps_done: denoising steps that had ended.
    """

    def __init__(self, steps_done: int) -> None:
        self.steps_done = steps_done
        super().__init__(f"The generation was cancelled after {steps_done} steps.")


class DeadlineExceeded(RuntimeFailure):
    """Its time limit passed.

    Attributes:
        steps_done: denoising steps that had ended.
    """

    def __init__(self, steps_done: int) -> None:
        self.steps_done = steps_done
        super().__init__(f"The time limit passed after {steps_done} steps.")


class OutOfMemory(RuntimeFailure):
    """The device, or the host, has too little memory for this request.

    Attributes:
        ranks: the ranks that ran out.
    """

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        super().__init__(f"Out of memory for this request on ranks {list(ranks)}.")


class PipelineRefused(RuntimeFailure):
    """The pipeline's own checks refused the arguments, before any step ran.

    Attributes:
        field: the request's field that they refused, as far as it can be told.
        reason: the pipeline's words.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"The pipeline refused the arguments: {reason}")


class PipelineFailed(RuntimeFailure):
    """A bug: in us, or in the pipeline.

    Attributes:
        error_id: stands in the log beside the traceback.
        error_type: the exception's class.
        step: denoising steps that had ended.
    """

    def __init__(self, error_id: str, error_type: str, step: int) -> None:
        self.error_id = error_id
        self.error_type = error_type
        self.step = step
        super().__init__(f"{error_type} after step {step}; see {error_id} in the log.")


class NanOutput(RuntimeFailure):
    """The pipeline put out numbers that are not finite.

    Attributes:
        error_id: stands in the log.
    """

    def __init__(self, error_id: str) -> None:
        self.error_id = error_id
        super().__init__(f"The pipeline put out NaN or infinity; see {error_id} in the log.")


class UnknownGeneration(RuntimeFailure):
    """No generation has this id, or it is somebody else's.

    Attributes:
        request_id: the id that was asked for.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        super().__init__(f"There is no generation {request_id!r}.")


class RequestIdReused(RuntimeFailure):
    """The id stands for a generation with other content.

    Attributes:
        request_id: the id that was used again.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        super().__init__(f"request_id {request_id!r} was used with other content.")


class ChangeRefused(RuntimeFailure):
    """The ranks, or cache-dit on them, refused a configuration; the old one is in force.

    Attributes:
        problems: what they refused, by field.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.field}: {problem.reason}" for problem in problems))


class AdapterRefused(RuntimeFailure):
    """The pipeline, as it is loaded, cannot hold an adapter; no rank holds any of it.

    Attributes:
        name: the name that it was to have.
        reason: what stands in the way.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"The adapter {name} cannot be loaded: {reason}.")


class AdapterNameTaken(RuntimeFailure):
    """Another file is loaded under this name.

    Attributes:
        name: the name.
        file: what is loaded under it.
    """

    def __init__(self, name: str, file: str) -> None:
        self.name = name
        self.file = file
        super().__init__(f"The adapter {name} is loaded from {file}; unload it first.")


class UnknownAdapter(RuntimeFailure):
    """No adapter is loaded under this name.

    Attributes:
        name: the name that was asked for.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"No adapter is loaded under the name {name!r}.")


class ReloadFailed(RuntimeFailure):
    """The ranks could not be loaded with a configuration; the old one is back in force.

    Attributes:
        cause: what was seen.
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"The reload failed, and the old configuration is back: {cause}")


class ResultNotKept(RuntimeFailure):
    """The outputs were made, but nothing could keep them for later readers.

    Attributes:
        cause: what stood in the way, such as "No space left on device".
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"The outputs could not be kept for later readers: {cause}.")


class ReaderTimeout(RuntimeFailure):
    """The reader took nothing for longer than `reader_timeout`."""

    def __init__(self) -> None:
        super().__init__("The reader took nothing for longer than reader_timeout.")
