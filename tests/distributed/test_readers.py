"""Many clients, clients that stop reading, and outputs larger than any message may be."""

from __future__ import annotations

import asyncio

import grpc
from tests.distributed.conftest import PATIENCE_SECONDS
from tests.distributed.generations import (
    ending,
    other_fields,
    picture,
    read_to_failure,
    small,
    stub_of,
    watched,
)
from tests.distributed.servers import Server

from ditcast_client import Client
from ditcast_client.fields import request_from

LARGE = 20 * 2**20
"""Bytes: five times what a default client takes in one message."""
SIDE = 672
IMAGES = 16


async def test_twenty_clients_at_once_each_get_their_own_picture(
    server_one: Server, one: Client
) -> None:
    """Whoever else asks at the same time, everybody gets the bytes of his own seed."""

    async def ask(seed: int) -> bytes:
        async with server_one.client() as client:
            return await picture(client, **small(seed=seed))

    seeds = range(1000, 1020)
    together = await asyncio.gather(*(ask(seed) for seed in seeds))
    alone = [await picture(one, **small(seed=seed)) for seed in seeds]
    assert together == alone
    assert len(set(alone)) == 20


async def test_an_output_of_over_20_mb_passes_a_default_client(server_other: Server) -> None:
    """Chunks keep every message under the 4 MiB that clients accept unless told otherwise."""
    async with server_other.client() as client:
        asked = other_fields(width=SIDE, height=SIDE, num_images=IMAGES, num_inference_steps=1)
        events, result = await watched(client.generate(**asked))
    assert sum(len(output.data) for output in result.outputs) == SIDE * SIDE * 3 * IMAGES > LARGE
    assert max(event.ByteSize() for event in events) < 2**21


async def test_a_client_that_stops_reading_holds_up_nobody(server_other: Server) -> None:
    """It is ended after reader_timeout; meanwhile others get their pictures."""
    large = other_fields(width=SIDE, height=SIDE, num_images=8, request_id="stalled")
    async with stub_of(server_other.address) as stub, server_other.client() as client:
        stalled = stub.Generate(request_from(large))
        await stalled.read()
        for seed in range(5):
            assert (await client.generate(**other_fields(seed=seed)).result()).outputs
        # What was on its way still comes, and then the status.
        await server_other.ended("stalled")
        await asyncio.sleep(3 * PATIENCE_SECONDS)
        _, error = await read_to_failure(stalled)
    ended = ending(error)
    assert ended.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ended.reason == "READER_TIMEOUT"
