"""Who pings within reason is answered; who pings without is told so and sent away.

By frames of HTTP/2, as no library pings as often as it takes. That once every 30 s is within reason
is what the server's options say (tests/docs/test_operations_commands.py): to see it takes minutes.
"""

from __future__ import annotations

import asyncio
import struct

from tests.service.conftest import Served

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACKNOWLEDGED = 1


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Give a frame of the connection itself."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, 0, 0) + payload


async def answers(reader: asyncio.StreamReader, until: int) -> list[tuple[int, bytes]]:
    """Read answers to pings, and goodbyes, until one of a kind has come."""
    found: list[tuple[int, bytes]] = []
    async with asyncio.timeout(10):
        while until not in dict(found):
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            if head[3] == GOAWAY or (head[3] == PING and head[4] == ACKNOWLEDGED):
                found.append((head[3], payload))
    return found


async def ping(address: str, times: int, until: int) -> list[tuple[int, bytes]]:
    """Ping so often at once, without a call, and give what comes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(PREFACE + frame(SETTINGS))
        writer.write(b"".join(frame(PING, struct.pack(">Q", each)) for each in range(times)))
        return await answers(reader, until)
    finally:
        writer.close()


async def test_a_ping_is_answered(served: Served) -> None:
    """With what it carried; there is no call on the connection."""
    assert await ping(served.address, 1, PING) == [(PING, struct.pack(">Q", 0))]


async def test_who_pings_without_reason_is_sent_away(served: Served) -> None:
    """And told why, by the name that clients know."""
    *_, (kind, payload) = await ping(served.address, 8, GOAWAY)
    assert kind == GOAWAY
    assert b"too_many_pings" in payload
