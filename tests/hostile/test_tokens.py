"""What opens the door stands in no log, at its most talkative, whether it opens or not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.distributed.servers import Server

from ditcast.v1.diffusion_service_pb2 import GetConfigurationRequest, ListGenerationsRequest
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub

TOKEN = "right-0123456789abcdef"  # noqa: S105 (made up)
WRONG = "wrong-0123456789abcdef"
CALLERS = f"callers: [{{name: studio, token: {TOKEN}, scopes: [generate, admin]}}]"


def called(stub: Any, authorization: str) -> grpc.StatusCode:  # noqa: ANN401 (types know aio's)
    """Call with a header; give how that ended."""
    try:
        stub.ListGenerations(
            ListGenerationsRequest(), metadata=(("authorization", authorization),), timeout=30
        )
    except grpc.RpcError as error:
        ended: Any = error
        code: grpc.StatusCode = ended.code()
        return code
    return grpc.StatusCode.OK


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_token_is_ever_in_the_log(form: str, tmp_path: Path) -> None:
    """The server answers while it loads: with the right token, a wrong one and broken ones."""
    (tmp_path / "callers.yaml").write_text(CALLERS)
    flags = ("--callers", f"{tmp_path}/callers.yaml", "--log-level", "debug", "--log-format", form)
    server = Server(tmp_path, *flags)
    try:
        with grpc.insecure_channel(server.address) as channel:
            grpc.channel_ready_future(channel).result(60)
            stub: Any = DiffusionServiceStub(channel)
            assert called(stub, f"Bearer {TOKEN}") is grpc.StatusCode.OK
            for other in (WRONG, f"{TOKEN}x", f"{TOKEN} {WRONG}"):
                assert called(stub, f"Bearer {other}") is grpc.StatusCode.UNAUTHENTICATED
            for header in (TOKEN, f"Basic {TOKEN}", f"bearer{TOKEN}"):
                assert called(stub, header) is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError):
                stub.GetConfiguration(GetConfigurationRequest(), timeout=30)
    finally:
        server.clear_away()
    log = server.log.read_text()
    assert log.count("UNAUTHENTICATED") == 7
    for secret in (TOKEN, WRONG, hashlib.sha256(TOKEN.encode()).hexdigest()):
        assert secret not in log
