"""What holds of a group on one host, tried on groups of ranks that others start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.distributed.generations import (
    FOR_EVER,
    ending,
    fields,
    kinds,
    picture,
    read_to_failure,
    stub_of,
    watched,
)
from tests.distributed.servers import Server

from ditcast_client.fields import GenerateFields, request_from

LONG: GenerateFields = {"width": 64, "height": 64, "num_inference_steps": 20, "seed": 11}
"""Steps enough for a fault to happen while they run, and little ones."""


async def cancels(server: Server) -> None:
    """Leave a generation at its next step, on all ranks, and run the next one."""
    asked = request_from(fields(request_id="left", num_inference_steps=FOR_EVER))
    async with stub_of(server.address) as stub, server.client() as client:
        call = stub.Generate(asked)
        for _ in range(5):
            await call.read()
        await client.cancel(asked.request_id)
        _, error = await read_to_failure(call)
        assert ending(error).reason == "CANCELLED"
        assert await picture(client, num_inference_steps=2)


async def survives(server: Server, undisturbed: bytes, fault: Callable[[], None]) -> None:
    """Finish a generation with the same bytes although its ranks are lost in the middle."""
    async with server.client() as client:
        running = client.generate(**fields(**LONG))
        events = aiter(running)
        seen = []
        async for event in events:
            seen.append(event)
            if event.HasField("step_completed") and event.step_completed.step == 2:
                break
        else:
            pytest.fail("it was over before the fault")
        await asyncio.to_thread(fault)
        seen += [event async for event in events]
        result = await running.result()
    assert kinds(seen).count("restarted") == 1, kinds(seen)
    assert result.outputs[0].data == undisturbed


async def undisturbed(server: Server) -> bytes:
    """Make the picture that `survives` makes under a fault."""
    async with server.client() as client:
        _, result = await watched(client.generate(**fields(**LONG)))
    return result.outputs[0].data
