"""What waits for its turn between two generations, and how its writer hears what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

from ditcast_runtime.config import Configuration
from ditcast_runtime.errors import RuntimeFailure


class Pending:
    """Something that all ranks have to agree to; one writer waits for it.

    `commit` puts it into force as its writer hears of it.
    """

    subject: ClassVar[str]
    """The field that stands for all of it in a refusal."""

    def __init__(self, commit: Callable[[], None]) -> None:
        self.tried_by: int | None = None
        """The group that tries it before the others."""
        self.agreed: set[int] = set()
        """The groups whose ranks have agreed to it."""
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
        """Put it into force and tell the writer; False if it was given up."""
        if self.given_up:
            return False
        self._commit()
        self._done.set_result(None)
        return True

    def fail(self, failure: RuntimeFailure) -> None:
        """Tell the writer, who may have given up, that all stays as it was."""
        if not self._done.done():
            self._done.set_exception(failure)


class Change(Pending):
    """Another configuration."""

    subject = "cache"

    def __init__(
        self, wanted: Configuration, *, reload: bool, commit: Callable[[Configuration], None]
    ) -> None:
        super().__init__(lambda: commit(wanted))
        self.wanted = wanted
        self.reload = reload
