"""A server that is newer than the client: what the client makes of what it does not know."""

from __future__ import annotations

import grpc
import pytest
from tests.clients.conftest import Scripted
from tests.clients.scripted import ours, status, success

from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_client import Client, DitcastError, FailedPrecondition

NEW_FIELD = b"\xc2\xb8\x02\x03new"
"""Field 5000 of any message, three bytes long."""


async def test_a_kind_of_event_that_is_not_known_is_passed_over(
    client: Client, server: Scripted
) -> None:
    """It is shown to who reads the events, has no kind, and the result is what it would be."""
    new = GenerationEvent()
    new.MergeFromString(NEW_FIELD)
    first, *others = success(b"bytes")
    server.service.script = [first, new, *others]
    generation = client.generate(prompt="a circle")
    kinds = [event.WhichOneof("kind") async for event in generation]
    assert kinds.count(None) == 1
    assert (await generation.result()).outputs


async def test_a_reason_that_is_not_known_has_the_class_of_its_status(
    client: Client, server: Scripted
) -> None:
    """Codes are gRPC's and stay; reasons are added."""
    server.service.script = [
        status(grpc.StatusCode.FAILED_PRECONDITION, "not today", ours("BRAND_NEW"))
    ]
    with pytest.raises(FailedPrecondition) as caught:
        await client.generate(prompt="a circle").result()
    error: DitcastError = caught.value
    assert error.reason == "BRAND_NEW"
