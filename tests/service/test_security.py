"""The door: TLS, certificates that change, tokens, scopes, and what stays open."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2 as details
from grpc import aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from structlog.testing import capture_logs
from tests.service.fakes import FakeEngine

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast_runtime.errors import ConfigError
from ditcast_service.callers import Callers
from ditcast_service.checks import tls_files
from ditcast_service.config import ServerConfig, load
from ditcast_service.gate import NEEDED
from ditcast_service.health import Health
from ditcast_service.server import build, listen, register
from ditcast_service.servicer import DiffusionServicer

STUDIO = "studio's own token, 0123456789"
OPERATOR = "operator's own token, 9876543210"
CALLERS = f"""
callers:
  - name: studio
    token: "{STUDIO}"
    scopes: [generate]
  - name: operators
    token_sha256: {hashlib.sha256(OPERATOR.encode()).hexdigest()}
    scopes: [admin]
  - name: press
    certificate: press.example.org
    scopes: [generate]
"""


@dataclass
class Door:
    """A server behind its door, and the authority that its certificates come from."""

    engine: FakeEngine
    address: str
    authority: trustme.CA
    folder: Path

    @contextlib.asynccontextmanager
    async def stub(self, client: trustme.LeafCert | None = None) -> AsyncIterator[Any]:
        """Call over TLS, with a certificate where one is given."""
        async with self.channel(client) as channel:
            yield DiffusionServiceStub(channel)

    def channel(self, client: trustme.LeafCert | None = None) -> aio.Channel:
        """Open a channel of its own."""
        return aio.secure_channel(self.address, self.credentials(client))

    def credentials(self, client: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
        """Believe the authority, and show a certificate where one is given."""
        root = self.authority.cert_pem.bytes()
        if client is None:
            return grpc.ssl_channel_credentials(root)
        key, chain = client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
        return grpc.ssl_channel_credentials(root, key, chain)


def write_certificate(folder: Path, authority: trustme.CA) -> None:
    """Put a new certificate for this machine where the server looks for it."""
    made = authority.issue_cert("localhost", "127.0.0.1")
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    made.cert_chain_pems[0].write_to_path(str(folder / "certificate.pem"))


@contextlib.asynccontextmanager
async def door(folder: Path, *, tokens: bool, certificates: bool) -> AsyncIterator[Door]:
    """Serve over TLS, and ask for tokens, or for clients' certificates."""
    authority = trustme.CA()
    write_certificate(folder, authority)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "callers.yaml").write_text(CALLERS)
    flags = ["--tls-certificate", f"{folder}/certificate.pem", "--tls-key", f"{folder}/key.pem"]
    flags += ["--callers", f"{folder}/callers.yaml"] if tokens else []
    flags += ["--tls-client-ca", f"{folder}/ca.pem"] if certificates else []
    config = load([*flags, "--listen", "127.0.0.1:0"], {})
    engine, server = FakeEngine(), build(config)
    register(server, DiffusionServicer(engine, config), Health())
    [address] = listen(server, config.listen, tls_files(config))
    await server.start()
    try:
        yield Door(engine, address, authority, folder)
    finally:
        await server.stop(None)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Give the metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:  # noqa: ANN401 (any kind of call)
    """Await what must be refused; give its code and the reason of its ErrorInfo."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call if not hasattr(call, "__aiter__") else [each async for each in call]
    status = rpc_status.from_call(cast("Any", caught.value))
    assert status is not None
    info = details.ErrorInfo()
    assert status.details[0].Unpack(info)
    return caught.value.code(), info.reason


def test_every_rpc_has_a_scope() -> None:
    """A new RPC is nobody's but the admins' until somebody decides."""
    [service] = pb.DESCRIPTOR.services_by_name.values()
    assert set(NEEDED) == {method.name for method in service.methods}


async def test_tokens_open_what_their_scopes_say(tmp_path: Path) -> None:
    """A generating caller cannot configure, an admin's token alone cannot generate."""
    async with door(tmp_path, tokens=True, certificates=False) as made, made.stub() as stub:
        studio, operator = bearer(STUDIO), bearer(OPERATOR)
        ask = pb.GenerateRequest(prompt="x")
        assert [each async for each in stub.Generate(ask, metadata=studio)]
        denied = (grpc.StatusCode.PERMISSION_DENIED, "MISSING_SCOPE")
        assert await refusal(stub.Generate(ask, metadata=operator)) == denied
        assert await refusal(stub.Configure(pb.ConfigureRequest(), metadata=studio)) == denied
        for metadata in (studio, operator):
            await stub.GetConfiguration(pb.GetConfigurationRequest(), metadata=metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer("studio's own token, 012345678"),
        bearer(""),
        (("authorization", f"Basic {STUDIO}"),),
        (("authorization", STUDIO),),
        bearer(STUDIO) * 2,
        (("authorization-bin", STUDIO.encode()),),
    ],
    ids=["none", "wrong", "empty", "basic", "bare", "twice", "binary"],
)
async def test_wrong_credentials_are_refused_and_never_logged(
    metadata: tuple[tuple[str, str | bytes], ...], tmp_path: Path
) -> None:
    """Nothing is said about the request, and no token stands in the log."""
    async with door(tmp_path, tokens=True, certificates=False) as made, made.stub() as stub:
        with capture_logs() as lines:
            call = stub.Generate(pb.GenerateRequest(), metadata=metadata)
            unknown = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert await refusal(call) == unknown
        assert "token, 01" not in str(lines)
        assert not made.engine.generations


async def test_only_health_is_open(tmp_path: Path) -> None:
    """Probes need nothing; reflection needs somebody who is known, channelz an admin."""
    async with door(tmp_path, tokens=True, certificates=False) as made, made.channel() as channel:
        probe: Any = health_pb2_grpc.HealthStub(cast("Any", channel))
        await probe.Check(health_pb2.HealthCheckRequest(service="liveness"))
        channelz: Any = channelz_pb2_grpc.ChannelzStub(cast("Any", channel))
        servers = channelz_pb2.GetServersRequest()
        unknown = grpc.StatusCode.UNAUTHENTICATED
        assert (await refusal(channelz.GetServers(servers)))[0] is unknown
        denied = grpc.StatusCode.PERMISSION_DENIED
        assert (await refusal(channelz.GetServers(servers, metadata=bearer(STUDIO))))[0] is denied
        assert (await channelz.GetServers(servers, metadata=bearer(OPERATOR))).server
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", channel))
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        assert (await refusal(reflection.ServerReflectionInfo(iter(asked))))[0] is unknown
        call = reflection.ServerReflectionInfo(iter(asked), metadata=bearer(STUDIO))
        assert [answer async for answer in call]


async def test_callers_see_their_own_generations_alone(tmp_path: Path) -> None:
    """An id is its caller's: to others it is as if it were not there."""
    async with door(tmp_path, tokens=True, certificates=False) as made, made.stub() as stub:
        ask = pb.GenerateRequest(prompt="x", request_id="mine")
        assert [each async for each in stub.Generate(ask, metadata=bearer(STUDIO))]
        assert made.engine.identities == ["studio"]


async def test_the_file_of_callers_is_read_again(tmp_path: Path) -> None:
    """A token that is taken out is worth nothing from then on; a broken file changes nothing."""
    async with door(tmp_path, tokens=True, certificates=False) as made, made.stub() as stub:
        file, ask = tmp_path / "callers.yaml", pb.GetConfigurationRequest()
        file.write_text("callers: [")
        with capture_logs() as lines:
            await stub.GetConfiguration(ask, metadata=bearer(STUDIO))
        assert lines[0]["event"].startswith("the file of callers is kept")
        file.write_text(CALLERS.replace(STUDIO, "quite another token"))
        code, _ = await refusal(stub.GetConfiguration(ask, metadata=bearer(STUDIO)))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        await stub.GetConfiguration(ask, metadata=bearer("quite another token"))


async def test_certificates_name_their_callers(tmp_path: Path) -> None:
    """With a file, its scopes hold; a certificate of a stranger opens nothing."""
    async with door(tmp_path, tokens=True, certificates=True) as made:
        ask = pb.GetConfigurationRequest()
        async with made.stub(made.authority.issue_cert("press.example.org")) as stub:
            await stub.GetConfiguration(ask)
            code, reason = await refusal(stub.Configure(pb.ConfigureRequest()))
            assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "MISSING_SCOPE")
        async with made.stub(made.authority.issue_cert("else.example.org")) as stub:
            assert (await refusal(stub.GetConfiguration(ask)))[0] is grpc.StatusCode.UNAUTHENTICATED
            # A token that is known outdoes the certificate.
            await stub.GetConfiguration(ask, metadata=bearer(OPERATOR))


async def test_without_a_certificate_no_call_gets_through_where_one_is_asked_for(
    tmp_path: Path,
) -> None:
    """The handshake fails: nothing of ours is reached."""
    async with door(tmp_path, tokens=False, certificates=True) as made:
        strangers = trustme.CA()
        for client in (None, strangers.issue_cert("press.example.org")):
            async with made.stub(client) as stub:
                with pytest.raises(aio.AioRpcError) as caught:
                    await stub.GetConfiguration(pb.GetConfigurationRequest(), timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with made.stub(made.authority.issue_cert("press.example.org")) as stub:
            assert [each async for each in stub.Generate(pb.GenerateRequest(prompt="x"))]
            assert made.engine.identities == ["press.example.org"]


async def test_new_certificates_serve_new_connections(tmp_path: Path) -> None:
    """No restart when a certificate is renewed; half a renewal leaves the old one."""
    async with door(tmp_path, tokens=False, certificates=False) as made:
        ask = pb.GetConfigurationRequest()
        renewed = trustme.CA()
        key = tmp_path / "key.pem"
        old = key.read_bytes()
        write_certificate(tmp_path, renewed)
        new = key.read_bytes()
        key.write_bytes(old)
        async with made.stub() as stub:
            await stub.GetConfiguration(ask)
        key.write_bytes(new)
        made.authority = renewed
        async with made.stub() as stub:
            await stub.GetConfiguration(ask)


async def test_plain_text_meets_a_closed_door(tmp_path: Path) -> None:
    """A port with TLS serves nobody without."""
    async with (
        door(tmp_path, tokens=False, certificates=False) as made,
        aio.insecure_channel(made.address) as channel,
    ):
        ask = pb.GetConfigurationRequest()
        with pytest.raises(aio.AioRpcError) as caught:
            await DiffusionServiceStub(channel).GetConfiguration(ask, timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def problems(arguments: list[str]) -> dict[str, str]:
    """Load what cannot be served; give the reasons by field."""
    with pytest.raises(ConfigError) as error:
        load(arguments, {})
    return {problem.field: problem.reason for problem in error.value.problems}


def test_beyond_this_machine_takes_tls_or_an_explicit_word(tmp_path: Path) -> None:
    """Nobody serves the world in plain text by accident."""
    everywhere = ["--listen", "0.0.0.0:50051"]
    assert "without TLS" in problems(everywhere)["--listen"]
    assert load([*everywhere, "--insecure"], {}).insecure
    write_certificate(tmp_path, trustme.CA())
    files = ["--tls-certificate", f"{tmp_path}/certificate.pem", "--tls-key", f"{tmp_path}/key.pem"]
    assert load([*everywhere, *files], {}).tls_key


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """What gRPC would only log at the first handshake stops the start."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_certificate(tmp_path / name, trustme.CA())
    certificate = ["--tls-certificate", f"{tmp_path}/one/certificate.pem"]
    wrong_key = [*certificate, "--tls-key", f"{tmp_path}/two/key.pem"]
    assert "no certificate and its key" in problems(wrong_key)["--tls-certificate"]
    assert "missing" in problems(certificate)["--tls-key"]
    missing = [*certificate, "--tls-key", f"{tmp_path}/none"]
    assert "cannot read" in problems(missing)["--tls-key"]


WRONG_CALLERS = {
    "callers: []": "--callers (callers)",
    "tokens: []": "--callers (callers)",
    "callers: [7]": "--callers (callers[0])",
    "callers: [{name: a, token: 0123456789abcdef, scopes: [all]}]": "--callers (callers[0].scopes)",
    "callers: [{name: a, token: short-secret, scopes: [admin]}]": "--callers (callers[0].token)",
    "callers: [{name: a, scopes: [admin]}]": "--callers (callers[0])",
    "callers: [{nane: a, certificate: b, scopes: [admin]}]": "--callers (callers[0].nane)",
    "callers: [{name: a, token_sha256: 1, scopes: [admin]}]": "--callers (callers[0].token_sha256)",
    "callers: [{name: a, certificate: b, scopes: [admin], max_queued_per_client: many}]": (
        "--callers (callers[0].max_queued_per_client)"
    ),
    "callers: [{name: a, certificate: b, scopes: [admin], max_queued_per_client: -1}]": (
        "--callers (callers[0].max_queued_per_client)"
    ),
    "callers: [{name: a, certificate: b, scopes: [admin], max_queued_per_client: 1}, "
    "{name: a, certificate: c, scopes: [admin], max_queued_per_client: 2}]": "--callers (callers)",
    "callers: [{name: a, certificate: b, scopes: [admin]}, "
    "{name: c, certificate: b, scopes: [admin]}]": "--callers (callers)",
    "callers: [{name: a, certificate: b, scopes: [admin]}, "
    "{name: a, certificate: c, scopes: [generate]}]": "--callers (callers)",
    "callers: [short-secret": "--callers (callers)",
}


@pytest.mark.parametrize(("text", "field"), WRONG_CALLERS.items())
def test_a_wrong_file_of_callers_is_refused_by_field(text: str, field: str, tmp_path: Path) -> None:
    """Each slip is named, and no token with it."""
    file = tmp_path / "callers.yaml"
    file.write_text(text)
    found = problems(["--callers", str(file)])
    assert field in found
    assert "short-secret" not in str(found)


def test_tokens_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each call compares with every token there is, by the one comparison that tells nothing."""
    file = tmp_path / "callers.yaml"
    file.write_text(CALLERS)
    callers = Callers(file)
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(other))
        return one == other

    monkeypatch.setattr("ditcast_service.callers.hmac.compare_digest", compare)
    for token in (STUDIO, OPERATOR, "neither of the two"):
        callers.identify(token, ())
    assert compared == [32] * 6
    os.unlink(file)  # noqa: PTH108
    assert callers.identify(STUDIO, ()) is not None


def test_by_default_everybody_may_do_everything() -> None:
    """On this machine alone, which is where a server listens by default."""
    assert ServerConfig().callers is None
    assert ServerConfig().listen == ("127.0.0.1:50051",)
