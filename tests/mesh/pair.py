"""Two real servers, each at a place of its own, that tests may end: dead ones come back there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.distributed.servers import Server
from tests.mesh.proxies import free_ports

FLAGS = ("--grace", "300")
"""As in deploy/kubernetes a drain lasts as long as the longest generation may."""


class Pair:
    """Two servers of the embedded model on one rank each, on TCP ports that stay the same."""

    def __init__(self, folder: Path, *flags: str) -> None:
        """Start both."""
        self.ports = free_ports(2)
        self.servers = [
            Server(folder, "--listen", f"127.0.0.1:{port}", *FLAGS, *flags) for port in self.ports
        ]
        self._serve()

    def __iter__(self) -> Iterator[Server]:
        return iter(self.servers)

    def revive(self) -> None:
        """Start again what has ended, or was told to and a test that failed did not see to it."""
        for server in self:
            if server.alive and server._terminated:
                server.kill()
            if not server.alive:
                server.restart()

    async def of(self, request_id: str) -> Server:
        """Give the server that has a generation."""
        for server in self:
            if server.alive and await _has(server, request_id):
                return server
        raise AssertionError(f"no server knows {request_id}")

    def other(self, server: Server) -> Server:
        """Give the other one."""
        [other] = [each for each in self if each is not server]
        return other

    def port(self, server: Server) -> int:
        """Give the port of one of them."""
        return self.ports[self.servers.index(server)]

    def clear_away(self) -> None:
        """Leave nothing behind, whatever the tests did."""
        for server in self:
            server.clear_away()

    def _serve(self) -> None:
        try:
            for server in self:
                server.wait_serving()
        except BaseException:
            self.clear_away()
            raise


async def _has(server: Server, request_id: str) -> bool:
    async with server.client() as client:
        known = await client.list_generations()
    return any(each.request_id == request_id for each in known)
