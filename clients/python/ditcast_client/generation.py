"""One generation as its caller sees it: events to watch, a result to await, a way to leave it.

Watching and awaiting are one mechanism: `result()` reads the events itself unless somebody else
does. A generation that is left before its end is cancelled explicitly, because a server cannot
tell a cancel from a lost connection; connections that are lost come back by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

import grpc

from ditcast.v1.diffusion_service_pb2 import CancelGenerationRequest
from ditcast.v1.generation_pb2 import GenerationEvent, GenerationState
from ditcast_client.attachment import Attachment
from ditcast_client.errors import DataLoss, DitcastError, from_rpc_error, left_early
from ditcast_client.result import EventRecord, Result

if TYPE_CHECKING:
    from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceAsyncStub

_CANCEL_SECONDS: Final = 5.0
"""How long leaving a generation waits for the server's answer to the cancel."""


class Generation:
    """A generation; nothing is sent before its first event, or its result, is asked for.

    `async for event in generation` watches it, and `await generation.result()` gives its result,
    with or without a watcher. Leaving the loop early, or cancelling the task in it, cancels the
    generation; as a context manager it is cancelled at the end of the block at the latest. One that
    may continue, or that is only watched, is left as it is.

    Attributes:
        request_id: The id under which the server knows it.
    """

    def __init__(
        self,
        stub: DiffusionServiceAsyncStub,
        attachment: Attachment,
        *,
        cancel_on_leave: bool,
        validate_only: bool = False,
    ) -> None:
        self.request_id = attachment.request_id
        self._stub = stub
        self._attachment = attachment
        self._cancel_on_leave = cancel_on_leave
        self._partial = attachment.after_sequence > 0
        self._record = EventRecord(validate_only=validate_only, partial=self._partial)
        self._begun = False
        self._attached = False
        self._outcome: Result | DitcastError | None = None
        self._ended = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        """Watch the events; there is one watcher at a time.

        Raises:
            DitcastError: The generation did not succeed.
        """
        return self._watch()

    async def result(self) -> Result:
        """Wait for the end and give the result.

        Raises:
            DitcastError: The generation did not succeed, or what arrived is not what was made.
            RuntimeError: It is watched from its middle, and its result has a beginning.
        """
        if self._partial:
            raise RuntimeError(f"generation {self.request_id} is not watched from its first event")
        if not self._begun:
            async for _ in self:
                pass
        await self._ended.wait()
        self._raise_failure()
        return cast("Result", self._outcome)

    async def cancel(self) -> GenerationState.ValueType:
        """Cancel the generation and give the state that the cancel met; its watcher sees the end.

        Raises:
            NotFound: The server does not know it (yet).
        """
        request = CancelGenerationRequest(request_id=self.request_id)
        try:
            answer = await self._stub.CancelGeneration(request, timeout=_CANCEL_SECONDS)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err) from err
        return answer.state

    async def close(self) -> None:
        """Leave the generation: cancel it, unless it has ended, may continue or is only watched."""
        if self._record.finished:
            self._end_with_result()
        else:
            self._end(left_early(self._record.steps_done))
        attached, self._attached = self._attached, False
        if not attached:
            return
        if not self._record.finished and self._cancel_on_leave:
            # The server may have ended it, or be gone; the reader is leaving either way.
            with contextlib.suppress(DitcastError):
                await self.cancel()
        self._attachment.drop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _watch(self) -> AsyncGenerator[GenerationEvent, None]:
        if self._ended.is_set():
            self._raise_failure()
            return
        if self._begun:
            raise RuntimeError(f"generation {self.request_id} is being watched already")
        self._begun = self._attached = True
        try:
            async with contextlib.aclosing(self._attachment.events()) as events:
                async for event in events:
                    self._record.take(event)
                    yield event
            self._attached = False
            self._end_with_result()
        except DataLoss as err:
            self._end(err)
            raise
        except DitcastError as err:
            self._attached = False
            if not self._record.finished:
                self._end(err)
                raise
        except asyncio.CancelledError:
            # close() from elsewhere ends the call, and gRPC reports that as a cancelled task.
            task = asyncio.current_task()
            if not self._ended.is_set() or task is None or task.cancelling():
                raise
        finally:
            await self.close()
        self._raise_failure()

    def _end_with_result(self) -> None:
        if self._partial:
            self._end(None)
            return
        try:
            self._end(self._record.result(self.request_id))
        except DataLoss as err:
            self._end(err)

    def _end(self, outcome: Result | DitcastError | None) -> None:
        if not self._ended.is_set():
            self._outcome = outcome
            self._ended.set()

    def _raise_failure(self) -> None:
        if isinstance(self._outcome, DitcastError):
            raise self._outcome
