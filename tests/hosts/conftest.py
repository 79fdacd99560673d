"""What servers need, as in `tests.distributed`."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for sockets and logs."""
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="session")
def secret(folder: Path) -> Path:
    """Give a file with a group's secret."""
    file = folder / "secret"
    file.write_text(secrets.token_hex(32))
    return file
