"""Strikes a planned fault, and sees it mended: by a signal, by the operator, or by a request id."""

from __future__ import annotations

import uuid
from pathlib import Path

import psutil
from tests.campaigns.clients import Follower
from tests.campaigns.outcome import ENDS, Outcome
from tests.campaigns.place import Place, until_gone
from tests.campaigns.plan import SIGNALS, Fault, FaultKind
from tests.campaigns.recipes import RECIPES

from ditcast.v1.generation_pb2 import PRIORITY_HIGH
from ditcast_client import Client
from ditcast_client.fields import GenerateFields

_GONE_SECONDS = 150.0
"""How long a rank that was killed or stopped may be there. Stopped before its first report it is
found by the limit for loading alone: 60 s in a campaign, from when the last other had loaded."""
_TRIES = 5
_MEMORY = "RESOURCE_EXHAUSTED OUT_OF_MEMORY"
_FAILED = "INTERNAL PIPELINE_FAILED"
_ASKED = {
    FaultKind.HANG: ("hang", False),
    FaultKind.RAISE_BEFORE: ("raise", False),
    FaultKind.RAISE_INSIDE: ("raise", False),
    FaultKind.RAISE_AFTER: ("raise", False),
    FaultKind.RAISE_ALL: ("raise", True),
    FaultKind.MEMORY_ONE: ("memory", False),
    FaultKind.MEMORY_ALL: ("memory", True),
}
"""What a request id asks for, and whether of all ranks."""


class Striker:
    """Strikes faults at a place.

    Attributes:
        struck: Those that did strike.
        problems: Ranks that should have ended and have not.
    """

    def __init__(self, place: Place, follower: Follower) -> None:
        self.struck: list[Fault] = []
        self.problems: list[str] = []
        self._place = place
        self._follower = follower

    async def strike(self, fault: Fault, client: Client) -> None:
        """Strike once for certain; what it hit is mended later."""
        if fault.kind is FaultKind.KILL_SERVICE:
            await self._place.kill(fault.pause)
        elif fault.kind is FaultKind.END_SERVICE:
            await self._place.end(fault.pause)
        elif fault.kind in SIGNALS:
            await self._signal(fault)
        else:
            await self._ask(fault, client)
        self.struck.append(fault)
        self._follower.disturbed()

    async def _signal(self, fault: Fault) -> None:
        """Kill or stop a rank, whatever it is doing: loading too."""
        while True:
            ranks = self._place.server.ranks()
            if not ranks:
                await self._place.mended()
                continue
            rank = ranks[fault.rank % len(ranks)]
            try:
                rank.kill() if fault.kind is FaultKind.KILL else rank.suspend()
            except psutil.NoSuchProcess:
                continue
            if not await until_gone(rank, _GONE_SECONDS):
                self.problems.append(
                    f"fault {fault.number} ({fault.kind}): the rank is still there"
                )
            return

    async def _ask(self, fault: Fault, client: Client) -> None:
        """Run generations that ask for it until it has struck: others can be in the way."""
        for _ in range(_TRIES):
            outcome = await self._generation(fault, client)
            if self._note(outcome.request_id).exists():
                return
            await self._place.mended()
        self.problems.append(f"fault {fault.number} ({fault.kind}) never struck")

    async def _generation(self, fault: Fault, client: Client) -> Outcome:
        kind, on_all = _ASKED[fault.kind]
        ranks = "all" if on_all else str(fault.rank)
        request_id = f"fault-{fault.place}-{kind}-{ranks}-{fault.step}-1-{uuid.uuid4().hex[:8]}"
        # It goes first, so that the pause before it is the planned one.
        own: GenerateFields = {"request_id": request_id, "priority": PRIORITY_HIGH}
        asked: GenerateFields = {**RECIPES[fault.recipe], **own}
        generation = client.generate(**asked)
        expected = ENDS | _explained(fault.kind)
        return await self._follower.follow(generation, fault.kind, fault.recipe, expected=expected)

    def _note(self, request_id: str) -> Path:
        """Give the file by which the ranks say that it struck."""
        return self._place.server.fault_runs / f"struck-{request_id}"


def _explained(kind: FaultKind) -> frozenset[str]:
    """Give what such a fault may end its generation with, beside what any may.

    What one rank raises is not retried where the others come to the same vote all the same:
    nothing was lost.
    """
    if kind in {FaultKind.MEMORY_ONE, FaultKind.MEMORY_ALL}:
        return frozenset({_MEMORY})
    return frozenset() if kind is FaultKind.HANG else frozenset({_FAILED})
