"""Clients that generate, cancel, disconnect, come back, watch and configure, as their plan says."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta

import grpc
from tests.campaigns.outcome import (
    CANCELLED,
    COMPLETED,
    ENDS,
    GONE,
    Followed,
    Outcome,
    References,
    differs,
    status_of,
    unclear,
)
from tests.campaigns.place import Place
from tests.campaigns.plan import Act, ActKind
from tests.campaigns.recipes import CACHES, RECIPES
from tests.clients.proxy import Proxy, proxy_to
from tests.distributed.generations import stub_of

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast_client import Client, DitcastError, Generation
from ditcast_client.errors import from_rpc_error
from ditcast_client.fields import request_from

ACT_SECONDS = 240.0
"""After which an act counts as one that never ends: several starts of a service go into it. Since
it began or, if that is later, the last fault: each costs everybody who waits one more start."""
_CONFIGURE_SECONDS = 120.0
_BREATH_SECONDS = 0.5
"""How long a client waits after a refusal."""
_CONFIGURED = frozenset(
    {
        COMPLETED,
        "DEADLINE_EXCEEDED",
        "DEADLINE_EXCEEDED NOT_APPLIED",
        "FAILED_PRECONDITION CHANGE_REFUSED",
        "UNAVAILABLE DRAINING",
        "UNAVAILABLE LOADING",
        "UNAVAILABLE STOPPED",
        "UNAVAILABLE WARMING_UP",
    }
)
_OF_A_LOST_SERVICE = frozenset({GONE, "INVALID_ARGUMENT INVALID_REQUEST"})
"""What a service that was started again says of what the one before it knew."""

OnEvent = Callable[[int], Awaitable[None]]


class Follower:
    """Follows generations to their ends, whatever happens, and keeps how each ended."""

    def __init__(self, place: Place, references: References) -> None:
        self.outcomes: list[Outcome] = []
        self._place = place
        self._references = references
        self._limits: set[asyncio.Timeout] = set()
        """Of the acts that are under way."""

    def disturbed(self) -> None:
        """Give all that is under way the whole time once more: a fault has struck."""
        limit = asyncio.get_running_loop().time() + ACT_SECONDS
        for each in self._limits:
            if not each.expired():
                each.reschedule(limit)

    @contextlib.asynccontextmanager
    async def _limit(self) -> AsyncIterator[None]:
        """End what it is around with TimeoutError, once its time is over."""
        async with asyncio.timeout(ACT_SECONDS) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.remove(limit)

    async def follow(
        self,
        generation: Generation,
        act: str,
        recipe: str,
        *,
        expected: frozenset[str] = ENDS,
        on_event: OnEvent | None = None,
    ) -> Outcome:
        """Read all events of a generation and its result; calls `on_event` with their number."""
        followed, began, lost = Followed(), time.monotonic(), self._place.loss()
        problem = ""
        try:
            async with self._limit():
                async for event in generation:
                    followed.take(event)
                    if on_event is not None:
                        await on_event(followed.events)
                status = COMPLETED
                problem = differs(self._references, recipe, await generation.result())
        except DitcastError as error:
            status = status_of(error)
            allowed = expected | _OF_A_LOST_SERVICE if lost() else expected
            problem = unclear(status, allowed, service_lost=lost())
        except TimeoutError:
            status, problem = "no end", f"no end {ACT_SECONDS:.0f} s after the last fault"
        outcome = Outcome(
            request_id=generation.request_id,
            act=act,
            recipe=recipe,
            status=status,
            seconds=round(time.monotonic() - began, 3),
            events=followed.events,
            restarts=followed.restarts,
            resent=followed.resent,
            problem=followed.problem or problem,
        )
        self.outcomes.append(outcome)
        return outcome

    async def configure(self, client: Client, cache: str) -> Outcome:
        """Change the cache that is in force."""
        began, lost = time.monotonic(), self._place.loss()
        status = COMPLETED
        problem = ""
        limit = timedelta(seconds=_CONFIGURE_SECONDS)
        try:
            wanted = Configuration(cache=CACHES[cache])
            await client.configure(wanted, update_mask=["cache"], timeout=limit)
        except DitcastError as error:
            status = status_of(error)
            problem = unclear(status, _CONFIGURED, service_lost=lost())
        outcome = Outcome(
            request_id="",
            act=ActKind.CONFIGURE,
            recipe=cache,
            status=status,
            seconds=round(time.monotonic() - began, 3),
            problem=problem,
        )
        self.outcomes.append(outcome)
        return outcome


class Actor:
    """One client: carries its acts out one after the other, each through a proxy of its own."""

    def __init__(self, place: Place, follower: Follower) -> None:
        self._place = place
        self._follower = follower

    async def run(self, acts: Iterator[Act], enough: asyncio.Event) -> None:
        """Act until it is enough; the last act is carried to its end."""
        async with proxy_to(self._place.address) as proxy, Client(proxy.address) as client:
            for act in acts:
                if enough.is_set():
                    return
                if (await self._act(act, client, proxy)).status.startswith("UNAVAILABLE"):
                    await asyncio.sleep(_BREATH_SECONDS)

    async def _act(self, act: Act, client: Client, proxy: Proxy) -> Outcome:
        match act.kind:
            case ActKind.CONFIGURE:
                return await self._follower.configure(client, act.cache)
            case ActKind.DISCONNECT:
                return await self._disconnect(act, client)
            case ActKind.WATCH:
                return await self._watch(act, client)
            case _:
                pass
        generation = client.generate(**RECIPES[act.recipe])

        async def on_event(number: int) -> None:
            if number != act.after:
                return
            if act.kind is ActKind.REATTACH:
                proxy.cut()
            elif act.kind is ActKind.CANCEL:
                with contextlib.suppress(DitcastError):
                    await generation.cancel()

        expected = ENDS | {CANCELLED} if act.kind is ActKind.CANCEL else ENDS
        return await self._follower.follow(
            generation, act.kind, act.recipe, expected=expected, on_event=on_event
        )

    async def _watch(self, act: Act, client: Client) -> Outcome:
        """Generate, and be a second reader of it."""
        generation = client.generate(**RECIPES[act.recipe])
        watching: list[asyncio.Task[Outcome]] = []

        async def on_event(number: int) -> None:
            if number == 1:
                second = client.watch(generation.request_id)
                followed = self._follower.follow(second, act.kind, act.recipe)
                watching.append(asyncio.create_task(followed))

        name = ActKind.GENERATE
        outcome = await self._follower.follow(generation, name, act.recipe, on_event=on_event)
        await asyncio.gather(*watching)
        return outcome

    async def _disconnect(self, act: Act, client: Client) -> Outcome:
        """Generate without our client, leave without a word, and see how it ends."""
        request_id = uuid.uuid4().hex
        request = request_from({**RECIPES[act.recipe], "request_id": request_id})
        lost = self._place.loss()
        async with stub_of(self._place.address) as stub:
            call = stub.Generate(request, timeout=ACT_SECONDS)
            try:
                for read in range(act.after):  # noqa: B007 (how many there were)
                    await call.read()
            except grpc.aio.AioRpcError as error:
                status = status_of(from_rpc_error(error))
                outcome = Outcome(
                    request_id=request_id,
                    act=act.kind,
                    recipe=act.recipe,
                    status=status,
                    seconds=0.0,
                    events=read,
                    problem=unclear(status, ENDS, service_lost=lost()),
                )
                self._follower.outcomes.append(outcome)
                return outcome
            finally:
                call.cancel()
        # Ended UNAVAILABLE, its id is free again.
        expected = ENDS | {CANCELLED, GONE}
        return await self._follower.follow(
            client.watch(request_id), act.kind, act.recipe, expected=expected
        )
