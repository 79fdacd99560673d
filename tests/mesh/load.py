"""Generations through a proxy, and which server made them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tests.distributed.generations import small, stub_of
from tests.distributed.servers import Server
from tests.mesh.pair import Pair
from tests.mesh.proxies import Proxy

from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_client.fields import request_from


async def generated(proxy: Proxy, count: int) -> list[str]:
    """Make generations at the same time, without what our client tries again; give their ids."""

    async def one(number: int) -> str:
        last: GenerationEvent | None = None
        async for response in stub.Generate(request_from(small(seed=number))):
            last = response.event
        assert last is not None
        assert last.HasField("completed")
        return last.request_id

    async with stub_of(proxy.address) as stub:
        return await asyncio.gather(*(one(number) for number in range(count)))


async def servers_of(pair: Pair, request_ids: Iterable[str]) -> list[Server]:
    """Give each server that made one of these, once."""
    made = {id(server): server for server in [await pair.of(each) for each in request_ids]}
    return list(made.values())
