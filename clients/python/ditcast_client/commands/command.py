"""What the command line wants of a command, and the arguments that all commands share."""

from __future__ import annotations

import argparse
import os
from typing import Final, Protocol

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
ADDRESS_VARIABLE: Final = "DITCAST_ADDRESS"


class UsageError(Exception):
    """What was asked for on the command line cannot be; nothing was sent."""


class Command(Protocol):
    """A command; the first line of its docstring is its line in `ditcast --help`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it and give the exit code; errors of the client may rise."""
        ...


def add_address(parser: argparse.ArgumentParser) -> None:
    """Declare --address, with its variable as the default."""
    parser.add_argument(
        "--address",
        default=os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS,
        help=f"host:port or unix:/path; default: ${ADDRESS_VARIABLE}, now %(default)s",
    )
