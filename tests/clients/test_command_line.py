"""What belongs to the command line itself: help, commands that join, and what imports cost."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from ditcast_client import cli, exits


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have three commands in the entry-point group: one works, one lacks a package, one is odd."""
    found = EntryPoints(
        EntryPoint(name, value, cli.GROUP)
        for name, value in (
            ("hello", "builtins:len"),
            ("paint", "a_package_that_is_not_there:command"),
        )
    )
    monkeypatch.setattr("importlib.metadata.entry_points", found.select)


@pytest.mark.usefixtures("joined")
def test_help_lists_joined_commands_without_importing_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command that cannot be imported is listed all the same."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for word in ("generate", "info", "cancel", "hello", "paint", "serve"):
        assert word in shown
    assert exits.HELP in shown


@pytest.mark.usefixtures("joined")
def test_joined_command_gets_the_rest_of_the_arguments() -> None:
    """What stands after the name goes to the command, which gives the exit code."""
    assert cli.main(["hello", "--help", "b", "c"]) == 3


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("name", ["paint", "serve"])
def test_missing_server_says_what_to_install(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a client-only install, the server's commands say what they need, and exit with 2."""
    assert cli.main([name]) == 2
    assert "pip install 'ditcast[server]'" in capsys.readouterr().err


def test_rich_is_not_imported_with_the_client() -> None:
    """The progress bar's library is loaded by the commands that draw, and by nothing else."""
    code = "import sys, ditcast_client, ditcast_client.cli; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version names the distribution's version."""
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("ditcast ")
