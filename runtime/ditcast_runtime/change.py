"""One change of the configuration on its way into force, and how its writer hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ditcast_runtime.config import Configuration
from ditcast_runtime.errors import RuntimeFailure


class Change:
    """What a writer wants; `commit` puts it into force in the moment in which the writer hears."""

    def __init__(
        self, wanted: Configuration, *, reload: bool, commit: Callable[[Configuration], None]
    ) -> None:
        self.wanted = wanted
        self.reload = reload
        self.interrupted = False
        """Whether ranks were lost while it was being put into force."""
        self._commit = commit
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def given_up(self) -> bool:
        """Whether its writer no longer waits: nothing of it may come into force."""
        return self._done.cancelled()

    async def wait(self) -> None:
        """Wait until it is in force; whoever is cancelled here gives it up."""
        await self._done

    def succeed(self) -> bool:
        """Put it into force; False if its writer has given it up."""
        if self.given_up:
            return False
        self._commit(self.wanted)
        self._done.set_result(None)
        return True

    def fail(self, failure: RuntimeFailure) -> None:
        """Tell the writer, who may have given up, that the old configuration stays."""
        if not self._done.done():
            self._done.set_exception(failure)
