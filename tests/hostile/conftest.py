"""One server for all that is thrown at it: it must end as it began, on the same ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.campaigns.hostile.targets import STARTER, goes_on, served
from tests.distributed.servers import Server


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder with what the server's processes unpickle and send."""
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory, watched: Path) -> Iterator[Server]:
    """Serve the embedded model on one rank; at the end of all tests it still serves."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(Path(__file__).with_name("watched")))
            patch.setenv("WATCH_FOLDER", str(watched))
            server = stack.enter_context(served(tmp_path_factory.mktemp("hostile"), STARTER))
        ranks = [rank.pid for rank in server.ranks()]
        yield server
        goes_on(server, STARTER, ranks)


@pytest.fixture
def address(victim: Server) -> tuple[str, int]:
    """Give where it listens on TCP."""
    host, _, port = victim.addresses[1].rpartition(":")
    return host, int(port)
