"""A client that is newer than the server: what it gets for what the server does not know.

Older clients ask for nothing that a server does not have, as names and numbers of v1 never change
(tests/contract). tests/clients/test_skew.py has the other way round.
"""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc import aio
from tests.service.conftest import Served
from tests.service.test_malformed import refusal

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1.generation_pb2 import GenerationEvent, OutputOptions

NEW_FIELD = b"\xc2\xb8\x02\x03new"
"""Field 5000 of any message, three bytes long."""
NEW_WORD: Any = 99
"""Of any enum."""

PATH = "/ditcast.v1.DiffusionService/"


async def test_a_field_that_is_not_known_changes_nothing(served: Served) -> None:
    """Protobuf passes it over in silence: servers are upgraded before their clients."""
    channel: Any = served.channel
    call = channel.unary_stream(
        f"{PATH}Generate", response_deserializer=pb.GenerateResponse.FromString
    )(pb.GenerateRequest(prompt="a circle").SerializeToString() + NEW_FIELD)
    events: list[GenerationEvent] = [answer.event async for answer in call]
    assert events[-1].WhichOneof("kind") == "completed"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GenerateRequest(prompt="a", priority=NEW_WORD), "priority"),
        (pb.GenerateRequest(prompt="a", on_disconnect=NEW_WORD), "on_disconnect"),
        (pb.GenerateRequest(prompt="a", output=OutputOptions(format=NEW_WORD)), "output.format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_word_that_is_not_known_is_refused(
    request_: pb.GenerateRequest, field: str, served: Served
) -> None:
    """By the field's name: to take another in its place would make what nobody asked for."""
    bad = await refusal(served.stub.Generate(request_))
    assert [violation.field for violation in bad.field_violations] == [field]


async def test_an_rpc_that_is_not_known_is_unimplemented(served: Served) -> None:
    """And nothing else, so that a client can tell it from a refusal."""
    channel: Any = served.channel
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary(f"{PATH}Foretell")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
