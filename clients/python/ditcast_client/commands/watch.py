"""`ditcast watch`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from ditcast_client import exits
from ditcast_client.client import Client
from ditcast_client.commands.command import access, add_address
from ditcast_client.commands.output_files import place, write
from ditcast_client.errors import LEFT_EARLY, Cancelled
from ditcast_client.interrupt import leaving_on_interrupt
from ditcast_client.result import Result
from ditcast_client.views import View, choose_view


class Watch:
    """Watch a generation from its first event to its end, and write its outputs to files."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("request_id", metavar="ID", help="id of the generation")
        parser.add_argument(
            "-o",
            "--output",
            type=Path,
            metavar="FILE",
            help="file to write, replaced if there; several outputs become FILE-0, FILE-1, ... "
            "before its ending (default: out, with the ending of its form)",
        )
        parser.add_argument("--json", action="store_true", help="print one event a line, as JSON")
        add_address(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Watch, write and report; Ctrl-C leaves the generation to its other readers."""
        path = place(options.output)
        client = Client(options.address, **access(options))
        view = choose_view(options.address, as_json=options.json)
        try:
            with view:
                result = asyncio.run(_watch(client, options.request_id, view))
                view.finish(result, write(result.outputs, path))
        except Cancelled as err:
            if err.reason != LEFT_EARLY:
                raise
            print(f"left: {options.request_id} was not cancelled", file=sys.stderr)
            return exits.CANCELLED
        return exits.DONE


async def _watch(client: Client, request_id: str, view: View) -> Result:
    async with client, client.watch(request_id) as generation:
        with leaving_on_interrupt(generation):
            async for event in generation:
                view.show(event)
        return await generation.result()
