"""Asks again and again whether the health is true: SERVING means that generations are taken.

A probe is a health check, a generation that is left as soon as it was accepted, and, where it was
refused, another check: only a service that says SERVING before and after has lied.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import grpc
from tests.campaigns.outcome import status_of
from tests.campaigns.place import Place, health_of
from tests.campaigns.recipes import RECIPES
from tests.distributed.generations import stub_of

from ditcast.v1.generation_pb2 import PRIORITY_LOW
from ditcast_client.errors import from_rpc_error
from ditcast_client.fields import GenerateFields, request_from

_BETWEEN_SECONDS = 0.3
_ANSWER_SECONDS = 30.0
_FULL = "RESOURCE_EXHAUSTED QUEUE_FULL"


class Probe:
    """Probes a place until it is cancelled.

    Attributes:
        serving: Probes that found SERVING.
        not_serving: Probes that did not.
        problems: Each time that SERVING was not true.
    """

    def __init__(self, place: Place) -> None:
        self.serving = 0
        self.not_serving = 0
        self.problems: list[str] = []
        self._place = place

    async def run(self) -> None:
        """Probe without end."""
        while True:
            await self.once()
            await asyncio.sleep(_BETWEEN_SECONDS)

    async def once(self) -> None:
        """Probe once."""
        life = self._place.lives
        if not await health_of(self._place.address):
            self.not_serving += 1
            return
        self.serving += 1
        refusal = await self._refusal()
        if refusal in ("", _FULL) or not await health_of(self._place.address):
            return
        if life == self._place.lives and self._place.up:
            self.problems.append(f"SERVING, and a generation was refused with {refusal}")

    async def _refusal(self) -> str:
        """Try to be accepted, and leave; empty: it was."""
        request_id = f"probe-{uuid.uuid4().hex}"
        own: GenerateFields = {"request_id": request_id, "priority": PRIORITY_LOW}
        asked: GenerateFields = {**RECIPES["plain"], **own}
        async with stub_of(self._place.address) as stub:
            # Without a deadline: one that a busy machine cannot meet is refused, and rightly so.
            call = stub.Generate(request_from(asked))
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    answer = await call.read()
            except grpc.aio.AioRpcError as error:
                return status_of(from_rpc_error(error))
            except TimeoutError:
                return f"no answer within {_ANSWER_SECONDS:.0f} s"
            finally:
                call.cancel()
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                    await call.code()
        return "" if answer is not grpc.aio.EOF else "no event"
