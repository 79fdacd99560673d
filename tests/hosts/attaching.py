"""Ranks and strangers at a real control address, without torch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from ditcast_runtime.attach import Applicant, Attached
from ditcast_runtime.hosts import handshake
from ditcast_runtime.hosts.attachments import Attachments, Terms
from ditcast_runtime.hosts.handshake import Challenge, Hello, Proof, Secret
from ditcast_runtime.hosts.place import Place

SECRET = Secret(b"the group's own secret, 0123456789")
LONG = 30.0
"""Limit of a handshake that is not to be reached."""


def place(rank: int, world_size: int = 2) -> Place:
    """Put a rank somewhere."""
    return Place(
        rank=rank,
        world_size=world_size,
        local_rank=0,
        local_world_size=1,
        master_address="127.0.0.1",
        master_port=1,
        hosts_store=False,
    )


def hello(rank: int = 0, world_size: int = 2) -> Hello:
    """Say what a rank says first."""
    return Hello(
        release=handshake.RELEASE,
        rank=rank,
        world_size=world_size,
        process_id=os.getpid(),
        nonce=handshake.nonce(),
    )


@dataclass
class Post:
    """A control address: a Unix socket, and a port of loopback."""

    attachments: Attachments
    unix: str

    @property
    def tcp(self) -> str:
        """The address for other hosts."""
        return f"127.0.0.1:{self.attachments.ports[0]}"

    async def attach(
        self,
        rank: int,
        *,
        by: str = "",
        secret: Secret = SECRET,
        world_size: int = 2,
        tls: ssl.SSLContext | None = None,
        limit: float = LONG,
    ) -> Attached:
        """Attach as a rank; by the Unix socket, if not by another address."""
        at = place(rank, world_size)
        applicant = Applicant([by or self.unix], secret, at, tls)
        return await asyncio.to_thread(applicant.attach, limit)

    def knock(self) -> socket.socket:
        """Connect by TCP and say nothing."""
        host, _, port = self.tcp.rpartition(":")
        return socket.create_connection((host, int(port)), LONG)


@contextlib.asynccontextmanager
async def post(
    folder: Path,
    *,
    world_size: int = 2,
    handshake_timeout: float = LONG,
    attach_notice: float = LONG,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Post]:
    """Open a control address while the context lasts."""
    unix = f"unix:{folder}/ranks"
    terms = Terms(
        secret=SECRET,
        world_size=world_size,
        handshake_timeout=handshake_timeout,
        attach_notice=attach_notice,
        alive_timeout=LONG,
    )
    attachments = Attachments.listen(("127.0.0.1:0", unix), terms, tls)
    try:
        yield Post(attachments, unix)
    finally:
        attachments.close()


def converse(end: socket.socket, first: Hello, proof: bytes = b"") -> tuple[bytes, bytes]:
    """Shake hands by hand; give what proved the secret, or was to, and the last answer."""
    with end:
        end.sendall(handshake.pack(first))
        challenge = handshake.unpack(end.recv(512)[handshake.LENGTH.size :])
        assert isinstance(challenge, Challenge)
        proof = proof or handshake.pack(Proof(mac=SECRET.proof(first, challenge)))
        end.sendall(proof)
        return proof, end.recv(512)


async def read_to_end(end: socket.socket) -> bytes:
    """Read what the service says until it closes the connection."""

    def read() -> bytes:
        said = b""
        with contextlib.suppress(ConnectionResetError), end:
            while more := end.recv(4096):
                said += more
        return said

    return await asyncio.to_thread(read)
