"""A group over two hosts, each a network namespace: the same promises, also when the link is cut.

Both torchruns meet by the c10d rendezvous, the remote rank attaches by TLS, and the pipeline's own
collectives (Ulysses) go over the link. `make test-mesh` runs it, as root and with iproute2.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from tests.distributed.servers import Server, serve
from tests.hosts import promises
from tests.hosts.launching import Torchrun, gone
from tests.hosts.namespaces import INTERFACE, Host, fault

pytestmark = pytest.mark.mesh

ALIVE_SECONDS = 5
CUT_SECONDS = 12.0
"""Long enough for both sides to give the other up."""


@dataclass
class Hosts:
    """A service on one host, and a rank on each."""

    near: Host
    far: Host
    server: Server
    ranks: dict[str, Torchrun]


@pytest.fixture(scope="module")
def hosts(folder: Path, secret: Path) -> Iterator[Hosts]:
    """Lay the link, and start the service and both ranks."""
    reason = fault()
    if reason:
        pytest.skip(reason)
    near, far = Host("near", "10.77.0.1", 0), Host("far", "10.77.0.2", 1)
    server = None
    ranks: dict[str, Torchrun] = {}
    try:
        near.link(far)
        server = _serve(near, folder, secret)
        ranks = {host.name: _launch(host, near, folder, secret) for host in (near, far)}
        server.wait_serving()
        yield Hosts(near, far, server, ranks)
        server.stop()
        for torchrun in ranks.values():
            assert torchrun.wait() == 0, torchrun.tail()
    finally:
        if server is not None:
            server.clear_away()
        for torchrun in ranks.values():
            torchrun.clear_away()
        near.remove()
        far.remove()


def _serve(near: Host, folder: Path, secret: Path) -> Server:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    issued = authority.issue_cert(near.address)
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return Server(
        folder,
        *("--world-size", "2", "--device", "cpu", "--alive-timeout", str(ALIVE_SECONDS)),
        *("--control-listen", f"unix:{folder}/ranks", "--control-listen", f"{near}:50052"),
        *("--control-secret", str(secret)),
        *("--tls-certificate", f"{folder}/server.pem", "--tls-key", f"{folder}/server.pem"),
        within=near.within,
    )


def _launch(host: Host, near: Host, folder: Path, secret: Path) -> Torchrun:
    """Start a host's rank; the far one finds no socket of the service on its own disk."""
    service = f"unix:{folder}/ranks" if host is near else f"{near}:50052"
    return Torchrun(
        host.name,
        folder,
        (
            *("--nnodes", "2", "--nproc-per-node", "1", "--local-addr", host.address),
            *("--rdzv-endpoint", f"{near}:29400", "--rdzv-id", "group"),
            *("--rdzv-conf", f"is_host={int(host is near)}"),
        ),
        (
            *("--service", service, "--secret-file", str(secret)),
            *("--tls-ca", f"{folder}/authority.pem", "--interface", INTERFACE),
        ),
        within=host.within,
    )


async def test_the_bytes_are_those_of_one_host(hosts: Hosts, folder: Path) -> None:
    """The same world size on one host makes the same picture; a cancel frees both hosts."""
    plain = serve(folder, "--world-size", "2")
    one_host = await promises.undisturbed(plain)
    plain.stop()
    assert await promises.undisturbed(hosts.server) == one_host
    await promises.cancels(hosts.server)


async def test_a_remote_rank_that_is_killed_is_started_again(hosts: Hosts) -> None:
    """Kill -9 on the other host: both torchruns start theirs again, and the bytes are the same."""
    made = await promises.undisturbed(hosts.server)
    [remote] = hosts.ranks[hosts.far.name].ranks()
    [local] = hosts.ranks[hosts.near.name].ranks()
    await promises.survives(hosts.server, made, remote.kill)
    assert gone(local)


async def test_a_link_that_is_cut_loses_the_group_and_no_generation(hosts: Hosts) -> None:
    """Both sides give the other up by themselves; with the link back, the generation is finished.

    Nothing that the service holds is lost by it, and no rank is left of before.
    """
    made = await promises.undisturbed(hosts.server)
    [remote] = hosts.ranks[hosts.far.name].ranks()
    [local] = hosts.ranks[hosts.near.name].ranks()

    def cut() -> None:
        hosts.near.switch(on=False)
        try:
            time.sleep(CUT_SECONDS)
            assert gone(local)
            assert gone(remote)
        finally:
            hosts.near.switch(on=True)

    await promises.survives(hosts.server, made, cut)
