"""`ditcast adapters`."""

from __future__ import annotations

import argparse
import json

from google.protobuf.json_format import MessageToDict

from ditcast_client import exits
from ditcast_client.blocking import BlockingClient
from ditcast_client.commands.command import access, add_address


class Adapters:
    """List, load and unload LoRA adapters while the server serves."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        listing = actions.add_parser("list", help="what is loaded, and the files that could be")
        listing.add_argument("--json", action="store_true", help="print both as one JSON object")
        load = actions.add_parser("load", help="load a file on all ranks, between generations")
        load.add_argument("name", metavar="NAME", help="what requests will call it")
        load.add_argument("file", metavar="FILE", help="one of the files that list shows")
        unload = actions.add_parser("unload", help="remove one from all ranks")
        unload.add_argument("name", metavar="NAME", help="what requests call it")
        for action in (listing, load, unload):
            add_address(action)

    def run(self, options: argparse.Namespace) -> int:
        """Do it and say what became of it."""
        with BlockingClient(options.address, **access(options)) as client:
            match options.action:
                case "load":
                    adapter = client.load_adapter(options.name, options.file)
                    changed = ", ".join(adapter.components)
                    print(f"{adapter.name} is loaded from {adapter.file} and changes {changed}")
                case "unload":
                    client.unload_adapter(options.name)
                    print(f"{options.name} is unloaded")
                case _:
                    _print_list(client, as_json=options.json)
        return exits.DONE


def _print_list(client: BlockingClient, *, as_json: bool) -> None:
    found = client.list_adapters()
    if as_json:
        print(json.dumps(MessageToDict(found, always_print_fields_with_no_presence=True)))
        return
    # Only here, because rich takes a tenth of a second that --json has no use for.
    from ditcast_client.commands.tables import print_adapters  # noqa: PLC0415

    print_adapters(found)
