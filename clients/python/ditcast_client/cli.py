"""The `ditcast` command: its own commands, and those that the server's installation adds.

Every other package joins through the entry-point group `ditcast.commands`, with a function that
takes the arguments after the command's name and gives the exit code. Listing them imports nothing.
Exit codes (`ditcast_client.exits` has the table): 0 done, 1 failed, 2 refused (bad usage too),
3 unavailable, 4 time limit, 5 replayed to other bytes, 130 cancelled.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Final, cast

from ditcast_client import exits
from ditcast_client.commands import COMMANDS
from ditcast_client.commands.command import UsageError
from ditcast_client.errors import DitcastError
from ditcast_client.report import error_text

GROUP: Final = "ditcast.commands"
_SERVER_COMMANDS: Final = ("serve",)
"""What a server brings in any case; known here so that its absence can be explained."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next(iter(arguments), "")
    if name in joined_commands():
        return _run_joined(name, arguments[1:])
    if name in _SERVER_COMMANDS:
        return _explain_missing(name)
    return _run_own(arguments)


def joined_commands() -> tuple[str, ...]:
    """Name the commands of the entry-point group, without importing them."""
    return tuple(sorted(entry.name for entry in metadata.entry_points(group=GROUP)))


def _run_joined(name: str, arguments: list[str]) -> int:
    (entry, *_) = metadata.entry_points(group=GROUP, name=name)
    try:
        command = cast("Callable[[list[str]], int]", entry.load())
    except ModuleNotFoundError as err:
        return _explain_missing(name, err.name)
    return command(arguments)


def _explain_missing(name: str, module: str | None = None) -> int:
    found = f" ({module} is not there)" if module else ""
    print(
        f"ditcast {name} needs the server's packages{found}: pip install 'ditcast[server]'",
        file=sys.stderr,
    )
    return 2


def _run_own(arguments: list[str]) -> int:
    parser = _parser()
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary = next(iter((command.__doc__ or "").splitlines()))
        command.add_arguments(
            commands.add_parser(
                name,
                help=summary,
                description=summary,
                epilog=exits.HELP,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    options = parser.parse_args(arguments)
    try:
        code = COMMANDS[options.command].run(options)
        sys.stdout.flush()  # Here and not at exit, where a reader that left would make a traceback.
    except DitcastError as err:
        print(error_text(err), file=sys.stderr)
        return exits.exit_code(err)
    except UsageError as err:
        print(f"refused: {err}", file=sys.stderr)
        return exits.REFUSED
    except KeyboardInterrupt:
        return exits.CANCELLED
    except BrokenPipeError:
        # Whoever read the output is gone. What is left in the buffer must not fail a second time
        # when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.CANCELLED
    return code


def _parser() -> argparse.ArgumentParser:
    joined = [f"  {name}" for name in sorted({*joined_commands(), *_SERVER_COMMANDS})]
    parser = argparse.ArgumentParser(
        prog="ditcast",
        description="Generate with a ditcast server, and look after it.",
        epilog="\n".join(
            ["commands of the server (pip install 'ditcast[server]'):", *joined, "", exits.HELP]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    return parser


def _version() -> str:
    try:
        return f"ditcast {metadata.version('ditcast')}"
    except metadata.PackageNotFoundError:
        return "ditcast, not installed"
