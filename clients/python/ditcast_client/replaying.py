"""Makes what a receipt names again, and says whether it came out the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ditcast.v1.generation_pb2 import OutputDigest, Receipt
from ditcast_client.receipts import Difference, differences, request_of
from ditcast_client.result import Result

if TYPE_CHECKING:
    from ditcast_client.client import Client


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output, as it was made first and now."""

    output_index: int
    expected: str
    """SHA-256 in hexadecimal; empty: the receipt has no such output."""
    actual: str
    """SHA-256 in hexadecimal; empty: it was not made again."""

    @property
    def same(self) -> bool:
        """Whether the bytes are the same."""
        return self.expected == self.actual


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What came of making something again."""

    differences: tuple[Difference, ...]
    """In what the server differs from what made the receipt."""
    outputs: tuple[OutputComparison, ...]
    deterministic: bool
    """Whether the receipt promises the same bytes."""
    result: Result

    @property
    def same(self) -> bool:
        """Whether all bytes are the same."""
        return all(output.same for output in self.outputs)


async def replay(client: Client, receipt: Receipt, images: Iterable[bytes] = ()) -> Replay:
    """Make what a receipt names again, on whatever server it is.

    Args:
        client: The server.
        receipt: What was made, and with what; `read_receipt` reads one from a file.
        images: The input pictures' files, in any order.

    Raises:
        UnusableReceipt: A picture is missing, or is not among those that the receipt names.
        DitcastError: The generation did not succeed.
    """
    found = await compare(client, receipt)
    request = request_of(receipt, await client.capabilities(), images)
    return compared(receipt, found, await client.generate(request).result())


async def compare(client: Client, receipt: Receipt) -> tuple[Difference, ...]:
    """Say in what a server differs from what made a receipt; nothing is generated."""
    adapters = await client.list_adapters() if receipt.parameters.adapters else None
    return differences(
        receipt,
        await client.capabilities(),
        await client.configuration(),
        () if adapters is None else adapters.loaded,
    )


def compared(receipt: Receipt, found: tuple[Difference, ...], result: Result) -> Replay:
    """Compare what was made again with what the receipt says of it."""
    pairs = itertools.zip_longest(
        _hexadecimal(receipt.outputs), _hexadecimal(result.receipt.outputs)
    )
    return Replay(
        differences=found,
        outputs=tuple(
            OutputComparison(index, expected or "", actual or "")
            for index, (expected, actual) in enumerate(pairs)
        ),
        deterministic=receipt.deterministic,
        result=result,
    )


def _hexadecimal(outputs: Sequence[OutputDigest]) -> list[str]:
    return [output.sha256.hex() for output in outputs]
