"""`ditcast cancel`."""

from __future__ import annotations

import argparse

from ditcast_client import exits
from ditcast_client.blocking import BlockingClient
from ditcast_client.commands.command import access, add_address
from ditcast_client.report import state_word


class Cancel:
    """Cancel a generation by its id and say in which state it was."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("request_id", metavar="ID", help="id of the generation")
        add_address(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Cancel it; one that had ended stays as it is, which is no failure."""
        with BlockingClient(options.address, **access(options)) as client:
            state = client.cancel(options.request_id)
        print(f"{options.request_id} was {state_word(state)}")
        return exits.DONE
