"""Holds a command line in deploy/ to the service's own parser."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ditcast_client import cli
from ditcast_client.commands import COMMANDS
from ditcast_client.commands.command import Command
from ditcast_service import serve
from ditcast_service.config import ServerConfig, load


def serve_config(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> ServerConfig:
    """Give the settings that `ditcast serve ...` would serve with; anything unknown is an error."""
    command, *flags = arguments
    assert command == "serve"
    assert command in cli.joined_commands()
    assert callable(serve.command)
    return load(flags, environment or {})


def expect_client_command(arguments: Sequence[str]) -> None:
    """Fail if the client's command line does not take these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        ran: list[object] = []

        def run(_: Command, options: argparse.Namespace) -> int:
            ran.append(options)
            return 0

        patch.setattr(type(COMMANDS[arguments[1]]), "run", run)
        assert cli.main(list(arguments[1:])) == 0
        assert ran


def file_at(folder: Path, name: str, content: str) -> Path:
    """Write what a container finds mounted, and give where."""
    path = folder / name
    path.write_text(content, "utf-8")
    return path
