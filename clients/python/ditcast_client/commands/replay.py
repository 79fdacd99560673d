"""`ditcast replay`."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from ditcast.v1.generation_pb2 import Receipt
from ditcast_client import exits
from ditcast_client.client import Client
from ditcast_client.commands.command import UsageError, access, add_address
from ditcast_client.commands.output_files import place, write
from ditcast_client.interrupt import cancelling_on_interrupt
from ditcast_client.receipts import Difference, UnusableReceipt, read_receipt, request_of
from ditcast_client.replaying import Replay, compare, compared
from ditcast_client.views import View, choose_view


class ReplayCommand:
    """Make the bytes of a receipt again, or say what differs."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("receipt", type=Path, metavar="RECEIPT", help="file of the receipt")
        parser.add_argument(
            "-o",
            "--output",
            type=Path,
            metavar="FILE",
            help="file to write, as for `generate` (default: nothing is written)",
        )
        parser.add_argument(
            "--image",
            type=Path,
            action="append",
            default=[],
            metavar="FILE",
            help="an input picture of the receipt, in any order; once for each",
        )
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--check", action="store_true", help="compare the server, and generate nothing"
        )
        how.add_argument(
            "--strict", action="store_true", help="generate nothing on a server that differs"
        )
        add_address(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Compare, make it again, compare again; Ctrl-C cancels."""
        try:
            receipt = read_receipt(options.receipt)
            return asyncio.run(_replay(options, receipt, [_read(path) for path in options.image]))
        except UnusableReceipt as err:
            raise UsageError(str(err)) from err
        except OSError as err:
            raise UsageError(f"cannot read {err.filename}: {err.strerror}") from err


async def _replay(options: argparse.Namespace, receipt: Receipt, images: Sequence[bytes]) -> int:
    path = place(options.output)
    async with Client(options.address, **access(options)) as client:
        # Before anything runs: what is wrong with the pictures costs no generation.
        request = request_of(receipt, await client.capabilities(), images)
        found = await compare(client, receipt)
        _show_differences(found)
        if options.check:
            return exits.DIFFERENT if found else exits.DONE
        if options.strict and found:
            raise UsageError("the server differs from the receipt; without --strict it is tried")
        view = choose_view(options.address, as_json=False)
        with view:
            async with client.generate(request) as generation:
                with cancelling_on_interrupt(generation):
                    async for event in generation:
                        view.show(event)
                replay = compared(receipt, found, await generation.result())
            _finish(view, replay, path)
    _show_outputs(replay)
    return exits.DONE if replay.same else exits.DIFFERENT


def _finish(view: View, replay: Replay, path: Path | None) -> None:
    if path is not None:
        view.finish(replay.result, write(replay.result.outputs, path))


def _show_differences(found: Sequence[Difference]) -> None:
    if not found:
        print("the server is as the receipt names it", flush=True)
        return
    print("the server differs from the receipt:")
    for difference in found:
        print(f"  {difference}", flush=True)


def _show_outputs(replay: Replay) -> None:
    for output in replay.outputs:
        if output.same:
            print(f"output {output.output_index}: the same bytes, sha256 {output.actual}")
        else:
            expected, actual = output.expected or "none", output.actual or "none"
            print(
                f"output {output.output_index}: DIFFERENT, sha256 {actual} in place of {expected}"
            )
    if not replay.same and not replay.deterministic:
        print("the receipt does not promise the same bytes: it is not deterministic")


def _read(path: Path) -> bytes:
    return path.read_bytes()
