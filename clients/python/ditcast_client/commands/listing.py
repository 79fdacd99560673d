"""`ditcast list`."""

from __future__ import annotations

import argparse
import json

from google.protobuf.json_format import MessageToDict

from ditcast.v1.generation_pb2 import GenerationState
from ditcast_client import exits
from ditcast_client.blocking import BlockingClient
from ditcast_client.commands.command import UsageError, access, add_address
from ditcast_client.report import state_word

_STATES = {state_word(number): number for number in GenerationState.values() if state_word(number)}
del _STATES["unspecified"]
_DEFAULT_LIMIT = 50


class List:
    """List the generations that the server knows, the newest first."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--state",
            action="append",
            choices=_STATES,
            default=[],
            help="only those in this state; may be repeated",
        )
        parser.add_argument(
            "--limit",
            type=int,
            default=_DEFAULT_LIMIT,
            metavar="N",
            help="at most so many; 0: all (default: %(default)s)",
        )
        parser.add_argument(
            "--json", action="store_true", help="print one generation a line, as JSON"
        )
        add_address(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Ask and print."""
        if options.limit < 0:
            raise UsageError(f"--limit {options.limit} is less than 0")
        states = [_STATES[word] for word in options.state]
        with BlockingClient(options.address, **access(options)) as client:
            found = client.list_generations(states=states, limit=options.limit or None)
        if options.json:
            for generation in found:
                fields = MessageToDict(generation, always_print_fields_with_no_presence=True)
                print(json.dumps(fields))
        else:
            # Only here, because rich takes a tenth of a second that --json has no use for.
            from ditcast_client.commands.tables import print_list  # noqa: PLC0415

            print_list(found)
        return exits.DONE
