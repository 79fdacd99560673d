"""`ditcast adapters`, and adapters in `ditcast generate`: real processes, a scripted server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.clients.conftest import Scripted
from tests.clients.scripted import success
from tests.clients.test_commands import PICTURE, ditcast

from ditcast.v1.generation_pb2 import AdapterWeight
from ditcast_client import BlockingClient, NotFound


async def test_what_is_loaded_is_listed_until_it_is_unloaded(
    server: Scripted, tmp_path: Path
) -> None:
    """Load names what it changes, list shows both tables, unload forgets; twice is refused."""
    file = "styles/ink.safetensors"
    loaded = await ditcast(server, "adapters", "load", "ink", file, folder=tmp_path)
    assert (loaded.code, loaded.err) == (0, "")
    assert loaded.out == f"ink is loaded from {file} and changes transformer\n"
    table = await ditcast(server, "adapters", "list", folder=tmp_path)
    assert "Loaded" in table.out
    assert "Can be loaded" in table.out
    assert "3.0 MiB" in table.out
    listed = await ditcast(server, "adapters", "list", "--json", folder=tmp_path)
    found = json.loads(listed.out)
    assert [each["name"] for each in found["loaded"]] == ["ink"]
    assert [each["file"] for each in found["available"]] == [file]
    assert (await ditcast(server, "adapters", "unload", "ink", folder=tmp_path)).code == 0
    again = await ditcast(server, "adapters", "unload", "ink", folder=tmp_path)
    assert (again.code, again.out) == (2, "")


async def test_adapters_and_their_weights_are_asked_for(server: Scripted, tmp_path: Path) -> None:
    """`--adapter NAME:WEIGHT`, or the server's weight; one that is no number is refused."""
    server.service.script = success(PICTURE)
    asked = ("--adapter", "style:0.8", "--adapter", "detail")
    assert (await ditcast(server, "generate", "a cup", *asked, folder=tmp_path)).code == 0
    [request] = server.service.requests
    assert list(request.adapters) == [
        AdapterWeight(name="style", weight=0.8),
        AdapterWeight(name="detail"),
    ]
    wrong = await ditcast(server, "generate", "a cup", "--adapter", "style:much", folder=tmp_path)
    assert wrong.code == 2
    assert "--adapter style:much" in wrong.err
    assert len(server.service.requests) == 1


async def test_the_blocking_client_does_the_same(server: Scripted) -> None:
    """What the command uses, for programs."""

    def use() -> None:
        with BlockingClient(server.address) as client:
            assert client.load_adapter("ink", "styles/ink.safetensors").name == "ink"
            assert len(client.list_adapters().loaded) == 1
            client.unload_adapter("ink")
            with pytest.raises(NotFound):
                client.unload_adapter("ink")

    await asyncio.to_thread(use)
