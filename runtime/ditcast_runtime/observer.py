"""Who is told what happens in the engine, for figures and traces; nothing in it depends on them.

Every call is made on the event loop and has to be quick: the ranks wait behind it.
"""

from __future__ import annotations

from typing import Protocol

from ditcast_runtime.accepted import Generation
from ditcast_runtime.causes import RestartCause
from ditcast_runtime.errors import RuntimeFailure
from ditcast_runtime.group import RunReport


class Observer(Protocol):
    """Is told of generations and of the ranks, as things happen."""

    def accepted(self, generation: Generation) -> None:
        """It waits from now on; called in the context of whoever asked for it."""

    def taken(self, generation: Generation) -> None:
        """It waits no more: the ranks run it next, unless it ends before."""

    def reported(self, generation: Generation, report: RunReport) -> None:
        """A rank said something about it."""

    def begins_again(self, generation: Generation) -> None:
        """Its ranks were lost, and it waits once more."""

    def ended(self, generation: Generation, failure: RuntimeFailure | None) -> None:
        """It has ended, with a result or with what it failed with."""

    def ranks_restart(self, group: int, cause: RestartCause) -> None:
        """The ranks of the group of this index are replaced."""


class Observers:
    """Tells several, in their order; of none it is the observer that does nothing."""

    def __init__(self, *observers: Observer) -> None:
        self._all = observers

    def accepted(self, generation: Generation) -> None:
        """Pass it on."""
        for each in self._all:
            each.accepted(generation)

    def taken(self, generation: Generation) -> None:
        """Pass it on."""
        for each in self._all:
            each.taken(generation)

    def reported(self, generation: Generation, report: RunReport) -> None:
        """Pass it on."""
        for each in self._all:
            each.reported(generation, report)

    def begins_again(self, generation: Generation) -> None:
        """Pass it on."""
        for each in self._all:
            each.begins_again(generation)

    def ended(self, generation: Generation, failure: RuntimeFailure | None) -> None:
        """Pass it on."""
        for each in self._all:
            each.ended(generation, failure)

    def ranks_restart(self, group: int, cause: RestartCause) -> None:
        """Pass it on."""
        for each in self._all:
            each.ranks_restart(group, cause)


UNOBSERVED = Observers()
