"""What the groups of ranks have in common: who serves, who rests, and what all have to agree to.

A change comes into force on all groups that serve or on none. One tries it first, so that what
loses ranks never loses all of them; the others follow, each between two generations of its own.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

from ditcast_runtime.accepted import Generation
from ditcast_runtime.change import Change, Pending
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import ChangeRefused, RuntimeFailure
from ditcast_runtime.generation import AdapterUse
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.loaded_adapters import AdapterChange, LoadedAdapters
from ditcast_runtime.settings import Problem

_UNKNOWN_SECONDS = 10.0
"""What a start is taken to last before any was measured."""


class Fleet:
    """All groups, by their indices.

    Attributes:
        ledger: what they run.
        adapters: what they hold.
        serving: those that take generations.
        resting: those that are not started again for a while, as they were lost too often.
        change: what waits to come into force.
        start_seconds: what the newest start took.
        first_served: set once any has served: the others start then.
        draining: set when nothing new comes any more.
    """

    def __init__(self, config: EngineConfig, ledger: Ledger, adapters: LoadedAdapters) -> None:
        self._size = config.groups
        self.ledger = ledger
        self.adapters = adapters
        self._numbers = itertools.count(1)
        self._epoch = 0
        self.serving: set[int] = set()
        self.resting: set[int] = set()
        self.change: Pending | None = None
        self.start_seconds = _UNKNOWN_SECONDS
        self.first_served = asyncio.Event()
        self.draining = asyncio.Event()

    @property
    def finished(self) -> bool:
        """Whether it drains and no generation waits or runs, which could still begin again."""
        return self.draining.is_set() and not self.ledger.running and not len(self.ledger)

    @property
    def coming_epoch(self) -> int:
        """The epoch in which what was lost begins again; 0: that of whichever group takes it."""
        return self._epoch + 1 if self._size == 1 else 0

    def new_epoch(self) -> int:
        """Count one more start of a group."""
        self._epoch += 1
        return self._epoch

    def new_number(self) -> int:
        """Count one more order: numbers are no group's own, as a generation may change groups."""
        return next(self._numbers)

    def wake(self) -> None:
        """Let all groups that wait look what there is to do."""
        self.ledger.work.set()

    def drain(self) -> None:
        """Let the groups leave once all is done."""
        self.draining.set()
        self.wake()

    def serves(self, index: int) -> None:
        """Count a group among those that serve, with ranks that have agreed to nothing yet."""
        self.serving.add(index)
        self.ledger.estimates.groups = len(self.serving)
        if self.change is not None:
            self.change.agreed.discard(index)
        self.first_served.set()
        # Those with a configuration that is no longer in force may leave now.
        self.wake()

    def leaves(self, index: int) -> None:
        """Count a group out, whose ranks are lost or make way for others."""
        self.serving.discard(index)
        self.ledger.estimates.groups = max(1, len(self.serving))
        self._settle()
        self.wake()

    def rests(self, index: int) -> bool:
        """Let a group rest, if another is left that does not; whoever waits for it goes on."""
        if len(self.resting | {index}) == self._size:
            return False
        self.resting.add(index)
        if self.change is not None and self.change.tried_by == index:
            self.change.tried_by = None
        self.wake()
        return True

    def returns(self, index: int) -> None:
        """Count a group among those that may serve again."""
        self.resting.discard(index)

    def propose(self, change: Pending) -> None:
        """Let a change wait for its turn; one that its writer has given up makes way."""
        self.change = change
        self.wake()

    def offer(self, index: int) -> Pending | None:
        """Give a group what it has to agree to now, if there is anything."""
        change = self.change
        if change is None:
            return None
        if change.given_up:
            self.change = None
            return None
        if index in change.agreed or self._must_wait(change, index):
            return None
        if change.tried_by is None:
            change.tried_by = index
        return change

    def take(self, change: Change) -> None:
        """Leave a change that takes new ranks to the group that tries it."""
        if self.change is change:
            self.change = None

    def agree(self, index: int, change: Pending) -> None:
        """Note that a group can have it; with the last of them it is in force."""
        change.agreed.add(index)
        self._settle()
        # The others, who waited for one to try it, have their turns.
        self.wake()

    def refuse(self, change: Pending, failure: RuntimeFailure) -> None:
        """Drop a change that one group cannot have, and tell its writer."""
        if self.change is change:
            self.change = None
        change.fail(failure)
        self.wake()

    def interrupt(self, change: Pending, explanation: str) -> None:
        """Note that ranks were lost with it: once is chance, what does so twice would go on."""
        if change.interrupted:
            reason = f"the ranks were lost with it: {explanation}"
            self.refuse(change, ChangeRefused((Problem(change.subject, reason, "unsupported"),)))
        change.interrupted = True

    def may_begin(self, generation: Generation) -> bool:
        """Say whether the adapters that it names are there, and are not about to go."""
        uses, change = generation.parameters.adapters, self.change
        if isinstance(change, AdapterChange) and not (change.loads or change.given_up):
            begins = generation.configuration is None
            if begins and _names(uses, change):
                return False
        return self.adapters.hold(uses)

    def _settle(self) -> None:
        """Put the change into force if all that serve have agreed to it."""
        change = self.change
        if change is None or not change.agreed or not self.serving <= change.agreed:
            return
        self.change = None
        change.succeed()

    def _must_wait(self, change: Pending, index: int) -> bool:
        """Say whether it is not this group's turn, or not yet anybody's."""
        if not change.agreed and change.tried_by not in {None, index}:
            return True
        if isinstance(change, AdapterChange) and not change.loads:
            # A generation that has begun may yet begin again, on any group, and needs it then.
            begun = (*self.ledger.running, *self.ledger.restarting)
            return any(_names(each.parameters.adapters, change) for each in begun)
        if isinstance(change, Change) and change.reload:
            others = set(range(self._size)) - {index}
            # Else no group would serve, though one would soon.
            return not others & self.serving and not others <= self.resting
        return False


def _names(uses: Iterable[AdapterUse], change: AdapterChange) -> bool:
    return any(use.name == change.adapter.name for use in uses)
