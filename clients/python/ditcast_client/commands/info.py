"""`ditcast info`."""

from __future__ import annotations

import argparse
import json

from google.protobuf.json_format import MessageToDict

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast.v1.capabilities_pb2 import (
    Capabilities,
)
from ditcast_client import exits
from ditcast_client.blocking import BlockingClient
from ditcast_client.commands.command import access, add_address


class Info:
    """Show what the loaded pipeline accepts, and the current configuration."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        add_address(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Ask and print."""
        with BlockingClient(options.address, **access(options)) as client:
            capabilities, configuration = client.capabilities(), client.configuration()
        if options.json:
            print(_as_json(capabilities, configuration))
        else:
            # Only here, because rich takes a tenth of a second that --json has no use for.
            from ditcast_client.commands.tables import print_tables  # noqa: PLC0415

            print_tables(capabilities, configuration)
        return exits.DONE


def _as_json(capabilities: Capabilities, configuration: Configuration) -> str:
    return json.dumps(
        {
            "capabilities": MessageToDict(capabilities),
            "configuration": MessageToDict(configuration),
        },
        indent=2,
    )
