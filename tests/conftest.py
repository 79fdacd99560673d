"""What holds for all tests."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# A deadline measures the machine: whoever else uses it would fail a property that holds.
settings.register_profile("ditcast", deadline=None)
settings.load_profile("ditcast")


class _Unseen(logging.Handler):
    """Keeps what asyncio says of tasks whose failure nobody asked for."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the coroutine and its error."""
        if "never retrieved" in (message := record.getMessage()):
            self.messages.append(message)


@pytest.fixture(scope="session", autouse=True)
def no_task_fails_unseen() -> Iterator[None]:
    """Hold every task of the tests to be awaited; an error here is of any of them.

    Besides hiding a failure, one that is left is told of by the garbage collector, with a
    traceback, for which Python 3.11 parses source: within somebody's `ast.parse` that ends in
    "AST constructor recursion depth mismatch", in a test that has nothing to do with it.
    """
    unseen = _Unseen()
    logging.getLogger("asyncio").addHandler(unseen)
    yield
    gc.collect()
    logging.getLogger("asyncio").removeHandler(unseen)
    assert unseen.messages == []
