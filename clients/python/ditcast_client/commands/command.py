"""What the command line wants of a command, and the arguments that all commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final, Protocol, TypedDict

import grpc

from ditcast_client.access import Token, TokenFile, tls

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
ADDRESS_VARIABLE: Final = "DITCAST_ADDRESS"
TOKEN_FILE_VARIABLE: Final = "DITCAST_TOKEN_FILE"  # noqa: S105 (its name)
TLS_CA_VARIABLE: Final = "DITCAST_TLS_CA"


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
    access = parser.add_argument_group("access")
    access.add_argument("--tls", action="store_true", help="use TLS, as any of the next three does")
    access.add_argument(
        "--tls-ca",
        type=Path,
        default=os.environ.get(TLS_CA_VARIABLE),
        metavar="FILE",
        help=f"whom to believe about the server, PEM; default: ${TLS_CA_VARIABLE}, else the usual",
    )
    access.add_argument("--tls-certificate", type=Path, metavar="FILE", help="one's own, PEM")
    access.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    access.add_argument(
        "--token-file",
        type=Path,
        default=os.environ.get(TOKEN_FILE_VARIABLE),
        metavar="FILE",
        help=f"file that holds one's bearer token; default: ${TOKEN_FILE_VARIABLE}",
    )


class Access(TypedDict):
    """What a client takes beside the address."""

    credentials: grpc.ChannelCredentials | None
    token: Token | None


def access(options: argparse.Namespace) -> Access:
    """Make the client's credentials of the arguments.

    Raises:
        UsageError: A file cannot be read, or one of a pair is missing.
    """
    certificate, key = options.tls_certificate, options.tls_key
    if (certificate is None) != (key is None):
        raise UsageError("--tls-certificate and --tls-key go together")
    token = TokenFile(options.token_file) if options.token_file else None
    try:
        if token is not None:
            token()
        wanted = options.tls or options.tls_ca or certificate
        credentials = tls(options.tls_ca, certificate, key) if wanted else None
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"cannot read {err}") from err
    return Access(credentials=credentials, token=token)
