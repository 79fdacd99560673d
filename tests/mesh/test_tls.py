"""TLS before Envoy and behind it, with the transport sockets that are shipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
import yaml
from tests.distributed.generations import small
from tests.distributed.servers import Server, serve
from tests.mesh import proxies
from tests.mesh.proxies import DEPLOY, Envoy

from ditcast_client import Client, TransportBroken, Unauthenticated

pytestmark = pytest.mark.mesh

TOKEN = "studio's own token, 0123456789"  # noqa: S105 (of this test)
CALLERS = json.dumps({"callers": [{"name": "studio", "token": TOKEN, "scopes": ["generate"]}]})
MOUNTED = "/etc/envoy/tls"


@dataclass
class Authorities:
    """Who vouches for clients to Envoy, and for Envoy and servers to each other."""

    folder: Path
    clients: trustme.CA
    servers: trustme.CA

    def write(self) -> None:
        """Write the files that the shipped configuration names, and the server's."""
        self.clients.cert_pem.write_to_path(str(self.folder / "clients-ca.pem"))
        self.servers.cert_pem.write_to_path(str(self.folder / "servers-ca.pem"))
        for authority, name, file in (
            (self.clients, "127.0.0.1", "envoy"),
            (self.servers, "envoy", "envoy-as-client"),
            (self.servers, "ditcast", "server"),
        ):
            issued = authority.issue_cert(name)
            issued.private_key_pem.write_to_path(str(self.folder / f"{file}.key"))
            issued.cert_chain_pems[0].write_to_path(str(self.folder / f"{file}.pem"))

    def credentials(self, issuer: trustme.CA | None) -> grpc.ChannelCredentials:
        """Believe Envoy's authority, and show a certificate of this one, if any."""
        root = self.clients.cert_pem.bytes()
        if issuer is None:
            return grpc.ssl_channel_credentials(root)
        own = issuer.issue_cert("press.example.org")
        return grpc.ssl_channel_credentials(
            root, own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()
        )


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    """Make two authorities, and what they sign."""
    made = Authorities(tmp_path_factory.mktemp("tls"), trustme.CA(), trustme.CA())
    made.write()
    return made


@pytest.fixture(scope="module")
def server(authorities: Authorities) -> Iterator[Server]:
    """Serve to whom the servers' authority vouches for, and who has a token."""
    folder = authorities.folder
    (folder / "callers.yaml").write_text(CALLERS)
    server = serve(
        folder,
        *("--listen", "127.0.0.1:0"),
        *("--tls-certificate", f"{folder}/server.pem", "--tls-key", f"{folder}/server.key"),
        *("--tls-client-ca", f"{folder}/servers-ca.pem"),
        *("--callers", f"{folder}/callers.yaml"),
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def encrypting(server: Server, authorities: Authorities) -> Iterator[Envoy]:
    """Run Envoy as it is shipped, with the shipped encryption put in its place."""
    sockets = (DEPLOY / "envoy" / "tls.yaml").read_text("utf-8")
    sockets = yaml.safe_load(sockets.replace(MOUNTED, str(authorities.folder)))
    port = int(server.addresses[1].rpartition(":")[2])
    proxy = proxies.envoy(authorities.folder, [port], sockets)
    yield proxy
    proxy.stop()


@pytest.fixture
async def envoy(encrypting: Envoy, server: Server) -> Envoy:
    """Give Envoy, to whose probes the server answers over TLS."""
    await encrypting.until_healthy([int(server.addresses[1].rpartition(":")[2])])
    return encrypting


async def test_a_client_with_certificate_and_token_is_served(
    envoy: Envoy, authorities: Authorities
) -> None:
    """Encrypted both ways, and the token passes."""
    credentials = authorities.credentials(authorities.clients)
    async with Client(envoy.address, credentials=credentials, token=TOKEN) as client:
        assert (await client.generate(**small()).result()).outputs


async def test_a_certificate_alone_is_not_enough(envoy: Envoy, authorities: Authorities) -> None:
    """Envoy's own certificate makes nobody a caller of the server."""
    credentials = authorities.credentials(authorities.clients)
    async with Client(envoy.address, credentials=credentials) as client:
        with pytest.raises(Unauthenticated):
            await client.capabilities()


@pytest.mark.parametrize("issuer", ["nobody", "another"])
async def test_who_shows_no_certificate_of_ours_gets_nowhere(
    envoy: Envoy, authorities: Authorities, issuer: str
) -> None:
    """Not even with a token, and not with a certificate that the servers would believe."""
    shown = authorities.servers if issuer == "another" else None
    async with Client(
        envoy.address, credentials=authorities.credentials(shown), token=TOKEN
    ) as client:
        with pytest.raises(TransportBroken):
            await client.capabilities()


async def test_nobody_passes_envoy_by(server: Server, authorities: Authorities) -> None:
    """The server asks for a certificate of its own authority."""
    credentials = grpc.ssl_channel_credentials(authorities.servers.cert_pem.bytes())
    async with Client(server.addresses[1], credentials=credentials, token=TOKEN) as client:
        with pytest.raises(TransportBroken):
            await client.capabilities()
