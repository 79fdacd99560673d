"""What one client may have at once, by who calls or from where; the ranks are the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from grpc import aio
from grpc_status import rpc_status
from tests.service.ledger_engine import LedgerEngine, until

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1.capabilities_pb2 import Limits
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub
from ditcast_service.callers import ANYBODY, Caller
from ditcast_service.config import load
from ditcast_service.gate import client_of
from ditcast_service.health import Health
from ditcast_service.server import build, listen, register
from ditcast_service.servicer import DiffusionServicer

STUDIO, PRESS = "studio's own token", "the token of the press"
CALLERS = f"""
callers:
  - {{name: studio, token: "{STUDIO}", scopes: [generate]}}
  - {{name: press, token: "{PRESS}", scopes: [generate], max_queued_per_client: 3}}
"""


@dataclass
class Desk:
    """A server with the real ledger, and calls to it by name."""

    engine: LedgerEngine
    stub: Any

    def ask(self, token: str, request_id: str, **fields: Any) -> Any:  # noqa: ANN401 (a call)
        """Ask for a picture."""
        request = pb.GenerateRequest(prompt="a", request_id=request_id, **fields)
        return self.stub.Generate(request, metadata=bearer(token))

    async def queue(self, token: str, request_id: str) -> Any:  # noqa: ANN401 (a call)
        """Ask for a picture, and wait until it waits."""
        call = self.ask(token, request_id)
        assert (await call.read()).event.HasField("queued")
        return call

    async def limits(self, token: str) -> Limits:
        """Ask what one may have."""
        asked = pb.GetCapabilitiesRequest()
        answer = await self.stub.GetCapabilities(asked, metadata=bearer(token))
        return cast("Limits", answer.capabilities.limits)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Give the metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """Serve two callers, one of whom may have more."""
    (tmp_path / "callers.yaml").write_text(CALLERS)
    flags = ["--callers", f"{tmp_path}/callers.yaml", "--max-queued-per-client", "2"]
    config = load([*flags, "--max-bytes-per-client", str(10 * 128 * 128 * 3)], {})
    engine, server = LedgerEngine(config, tmp_path), build(config)
    register(server, DiffusionServicer(cast("Any", engine), config), Health())
    [address] = listen(server, ["127.0.0.1:0"])
    await server.start()
    try:
        async with aio.insecure_channel(address) as channel:
            yield Desk(engine, DiffusionServiceStub(channel))
    finally:
        await server.stop(None)


async def test_each_caller_has_limits_and_turns_of_its_own(desk: Desk) -> None:
    """One at its limit is told so, by name and without a token; the other's first goes second."""
    calls = [await desk.queue(STUDIO, f"studio {number}") for number in range(2)]
    with pytest.raises(aio.AioRpcError) as caught:
        await desk.ask(STUDIO, "one too many").read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(cast("Any", caught.value))
    assert status is not None
    quota, retry = details.QuotaFailure(), details.RetryInfo()
    assert status.details[1].Unpack(quota)
    assert status.details[2].Unpack(retry)
    assert [each.subject for each in quota.violations] == ["caller:studio"]
    assert retry.retry_delay.ToTimedelta().total_seconds() > 0
    assert STUDIO not in str(status)
    calls += [await desk.queue(PRESS, f"press {number}") for number in range(3)]
    order = []
    for _ in calls:
        generation = await desk.engine.run()
        order.append(generation.request_id)
        desk.engine.finish(generation)
    assert order == ["studio 0", "press 0", "studio 1", "press 1", "press 2"]
    again = await desk.queue(STUDIO, "one too many")
    again.cancel()
    await until(lambda: len(desk.engine.ledger) == 0)


async def test_the_capabilities_say_what_the_caller_may_have(desk: Desk) -> None:
    """What the file says of one outdoes the settings; what nobody says is no limit."""
    studio, press = await desk.limits(STUDIO), await desk.limits(PRESS)
    assert (studio.max_queued_per_client, press.max_queued_per_client) == (2, 3)
    assert studio.max_bytes_per_client == press.max_bytes_per_client == 10 * 128 * 128 * 3
    assert studio.max_generations_per_client == press.max_generations_per_client == 0


async def test_what_will_never_fit_says_no_time_to_try_again(desk: Desk) -> None:
    """Bytes of one generation alone are over the client's limit."""
    with pytest.raises(aio.AioRpcError) as caught:
        await desk.ask(STUDIO, "large", width=512, height=512).read()
    status = rpc_status.from_call(cast("Any", caught.value))
    assert status is not None
    kinds = [each.type_url.rpartition(".")[2] for each in status.details]
    assert kinds == ["ErrorInfo", "QuotaFailure"]


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.0.0.7:41234", "clientip:10.0.0.7"),
        ("ipv6:%5B2001:db8::7%5D:41234", "clientip:2001:db8::7"),
        ("unix:", "unix"),
        ("unix:/run/ditcast", "unix"),
    ],
)
def test_who_says_nothing_is_told_apart_by_address(peer: str, client: str) -> None:
    """Without the port: a second connection is no second client. Who is known has no address."""
    assert client_of(ANYBODY, peer) == client
    assert client_of(Caller("studio", ANYBODY.scopes), peer) == "caller:studio"
