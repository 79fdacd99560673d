"""`ditcast configure`."""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from pathlib import Path
from typing import Final

from google.protobuf.json_format import MessageToDict

from ditcast.v1.acceleration_pb2 import Configuration, Outcome
from ditcast.v1.diffusion_service_pb2 import ConfigureResponse
from ditcast_client import exits
from ditcast_client.blocking import BlockingClient
from ditcast_client.client import CONFIGURE_TIMEOUT
from ditcast_client.commands.assignments import read_assignments
from ditcast_client.commands.command import UsageError, access, add_address
from ditcast_client.commands.configuration_files import read_cache_dit, read_configuration

_IN_THE_WAY: Final = (Outcome.OUTCOME_NEEDS_RELOAD, Outcome.OUTCOME_REJECTED)
_ALL: Final = ("*",)

Change = tuple[Configuration, tuple[str, ...]]
"""New values, and the mask that says which of them count."""


class Configure:
    """Change the acceleration while the server runs, or go back to an earlier configuration."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        _add_what(parser)
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="show what would become of each field, change nothing; exit code 2 if something "
            "stands in the way",
        )
        parser.add_argument(
            "--allow-reload", action="store_true", help="let the ranks be loaded anew for it"
        )
        parser.add_argument(
            "--expected-revision", type=int, metavar="N", help="refuse if another one is in force"
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=CONFIGURE_TIMEOUT.total_seconds(),
            metavar="SECONDS",
            help="how long to wait for the running generation and a reload (default: %(default)g)",
        )
        parser.add_argument("--json", action="store_true", help="print the answer as JSON")
        add_address(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Change it, and show the outcomes."""
        change = _read_change(options)
        try:
            timeout = timedelta(seconds=options.timeout)
        except (OverflowError, ValueError) as err:
            raise UsageError(f"--timeout: {err}") from err
        if timeout <= timedelta():
            raise UsageError("--timeout: it must be over 0")
        with BlockingClient(options.address, **access(options)) as client:
            if change is None:
                change = client.configuration(options.rollback), _ALL
            configuration, update_mask = change
            try:
                response = client.configure(
                    configuration,
                    update_mask=update_mask,
                    expected_revision=options.expected_revision,
                    validate_only=options.dry_run,
                    allow_reload=options.allow_reload,
                    timeout=timeout,
                )
            except ValueError as err:
                raise UsageError(f"--expected-revision: {err}") from err
        _show(response, options)
        return exits.REFUSED if _stands_in_the_way(response) else exits.DONE


def _add_what(parser: argparse.ArgumentParser) -> None:
    """Declare where the change comes from; exactly one source counts."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assigned",
        metavar="PATH=VALUE",
        help="set one value, as in cache.db_cache.residual_diff_threshold=0.2; repeatable",
    )
    parser.add_argument(
        "--unset",
        action="append",
        default=[],
        metavar="PATH",
        help="go back to the value that the server started with; repeatable",
    )
    parser.add_argument(
        "--file",
        type=Path,
        help="YAML or JSON of the contract's Configuration, as `ditcast info --json` has it: all "
        "that it sets changes",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="with --file: what it leaves out becomes as on a server that was told nothing",
    )
    parser.add_argument(
        "--cache-dit-file",
        type=Path,
        metavar="FILE",
        help="YAML or JSON in cache-dit's own format: its sections replace those of the server, "
        "and nothing is cached if it has no cache_config",
    )
    parser.add_argument(
        "--rollback",
        type=int,
        metavar="REVISION",
        help="go back to one of the last 20 configurations",
    )


def _read_change(options: argparse.Namespace) -> Change | None:
    """Read what is to change; None: only the server knows it, by its revision."""
    sources = {
        "--set or --unset": bool(options.assigned or options.unset),
        "--file": options.file is not None,
        "--cache-dit-file": options.cache_dit_file is not None,
        "--rollback": options.rollback is not None,
    }
    named = [name for name, given in sources.items() if given]
    if len(named) != 1:
        given = f"{' and '.join(named)} exclude each other" if named else "nothing is to change"
        raise UsageError(f"{given}: use one of {', '.join(sources)}")
    if options.replace and options.file is None:
        raise UsageError("--replace goes with --file")
    if options.rollback is not None:
        if not 0 <= options.rollback < 2**64:
            raise UsageError(f"--rollback: {options.rollback} is no revision")
        return None
    if options.cache_dit_file is not None:
        return read_cache_dit(options.cache_dit_file)
    if options.file is not None:
        return read_configuration(options.file), _ALL if options.replace else ()
    return read_assignments(options.assigned, options.unset)


def _show(response: ConfigureResponse, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(MessageToDict(response), indent=2))
        return
    if response.outcomes:
        # Only here, because rich takes a tenth of a second that --json has no use for.
        from ditcast_client.commands.tables import print_outcomes  # noqa: PLC0415

        print_outcomes(response)
    print(_verdict(response, dry_run=options.dry_run))


def _verdict(response: ConfigureResponse, *, dry_run: bool) -> str:
    revision = response.configuration.revision
    if not response.outcomes:
        return f"nothing changes: revision {revision} is in force"
    if not dry_run:
        return f"revision {revision} is in force"
    if _stands_in_the_way(response):
        return f"it would be refused: revision {revision} would stay in force"
    return f"it would become revision {revision}"


def _stands_in_the_way(response: ConfigureResponse) -> bool:
    return any(each.outcome in _IN_THE_WAY for each in response.outcomes)
