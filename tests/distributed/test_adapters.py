"""LoRA adapters on real ranks: the same bytes as without the server, on all ranks or none."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Unpack

import pytest
from tests.distributed.adapter_files import write_adapter, write_misfit
from tests.distributed.conftest import REFERENCE
from tests.distributed.generations import MASKED, OFF, fields, levels_apart, watch_until
from tests.distributed.servers import Server, serve

from ditcast.v1.acceleration_pb2 import Configuration, ParallelismConfig
from ditcast.v1.generation_pb2 import AdapterWeight
from ditcast_client import AlreadyExists, Client, FailedPrecondition, NotFound
from ditcast_client.fields import GenerateFields
from ditcast_service.config import load

DOCS = Path(__file__).parents[2] / "docs" / "ADAPTERS.md"
SIDE = 64
"""Pixels."""
STYLE = [AdapterWeight(name="style", weight=0.8)]
MIX = [AdapterWeight(name="style", weight=0.5), AdapterWeight(name="detail", weight=-1.25)]


def little(**changed: Unpack[GenerateFields]) -> GenerateFields:
    """Give a request for a small picture."""
    size: GenerateFields = {"width": SIDE, "height": SIDE}
    return {**fields(**changed), **size}


async def made(client: Client, **changed: Unpack[GenerateFields]) -> bytes:
    """Make one small picture and give its pixels."""
    [output] = (await client.generate(**little(**changed)).result()).outputs
    return output.data


@pytest.fixture(scope="module")
def styles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of adapters, in two trainers' formats, and of files that fit nowhere."""
    styles = tmp_path_factory.mktemp("served") / "styles"
    styles.mkdir()
    write_adapter(styles / "style.safetensors", "attn.to_q", "attn.to_out.0", seed=1)
    write_adapter(styles / "detail.safetensors", "attn.to_v", "net.2", seed=2, kohya=True)
    write_misfit(styles / "misfit.safetensors")
    (styles / "garbage.safetensors").write_bytes(b"garbage")
    return styles


@pytest.fixture(scope="module")
def direct(styles: Path) -> dict[str, bytes]:
    """Make the same pictures without a server, with the adapters loaded before the cache."""
    subprocess.run(
        [sys.executable, "-m", "tests.distributed.direct_adapters", styles, str(SIDE)],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
        # As the ranks have it: threads that spin take the other tests' time.
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    return {name: (styles / f"{name}.raw").read_bytes() for name in ("one", "mix")}


@pytest.fixture(scope="module")
def on_one(folder: Path, styles: Path) -> Iterator[Server]:
    """Serve on one rank with one adapter from the start."""
    flags = ("--adapter-folder", str(styles), "--adapter", "style=styles/style.safetensors")
    server = serve(folder, *flags)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def on_two(folder: Path, styles: Path) -> Iterator[Server]:
    """Serve on two ranks with Ulysses, a split text encoder and caching."""
    flags = ("--world-size", "2", "--cache-dit-config", str(REFERENCE))
    server = serve(folder, *flags, "--adapter-folder", str(styles), "--crash-loop-losses", "50")
    yield server
    server.stop()


@pytest.fixture
async def solo(on_one: Server) -> AsyncIterator[Client]:
    """Connect to the server of one rank, with both adapters loaded."""
    async with on_one.client() as client:
        await client.load_adapter("detail", "styles/detail.safetensors")
        yield client


@pytest.fixture
async def pair(on_two: Server) -> AsyncIterator[Client]:
    """Connect to the server of two ranks."""
    async with on_two.client() as client:
        yield client


async def test_adapters_of_the_start_are_there_and_others_join(solo: Client) -> None:
    """In the order of loading, with what they change; the capabilities say that it is possible."""
    loaded = (await solo.list_adapters()).loaded
    assert [(each.name, list(each.components)) for each in loaded] == [
        ("style", ["transformer"]),
        ("detail", ["transformer"]),
    ]
    assert (await solo.capabilities()).adapters_supported


async def test_bytes_are_those_of_the_pipeline_itself(
    solo: Client, direct: dict[str, bytes]
) -> None:
    """With the cache on before the adapters were loaded, not after; mixed, in both formats."""
    for adapters, name in ((STYLE, "one"), (MIX, "mix"), (STYLE, "one")):
        result = await solo.generate(**little(cache=MASKED, adapters=adapters)).result()
        assert result.outputs[0].data == direct[name]
        assert list(result.cache.cached_steps) == [3, 5, 6]
    assert direct["one"] != direct["mix"]


async def test_without_adapters_nothing_of_them_is_left(solo: Client, one: Client) -> None:
    """After any with adapters, the bytes of a server that never had one."""
    never = await made(one, cache=OFF)
    assert await made(solo, cache=OFF, adapters=MIX) != never
    assert await made(solo, cache=OFF) == never


async def test_the_receipt_names_the_weights(solo: Client, styles: Path) -> None:
    """With the digest of the file; the same id with other adapters is another request."""
    same = "with-style"
    result = await solo.generate(**little(adapters=STYLE, request_id=same)).result()
    used = result.receipt.parameters.adapters
    digest = hashlib.sha256((styles / "style.safetensors").read_bytes()).hexdigest()
    assert [(each.name, each.weight, each.weights_digest) for each in used] == [
        ("style", 0.8, digest)
    ]
    with pytest.raises(AlreadyExists):
        await solo.generate(**little(adapters=MIX, request_id=same)).result()


@pytest.mark.parametrize("file", ["misfit", "garbage"])
async def test_what_does_not_fit_leaves_nothing_behind(solo: Client, file: str) -> None:
    """FAILED_PRECONDITION says why; the others act as before."""
    before = await made(solo, adapters=MIX), await made(solo)
    with pytest.raises(FailedPrecondition) as error:
        await solo.load_adapter("new", f"styles/{file}.safetensors")
    assert error.value.reason == "ADAPTER_REFUSED"
    assert (await made(solo, adapters=MIX), await made(solo)) == before
    assert len((await solo.list_adapters()).loaded) == 2


async def test_an_unload_waits_and_what_is_queued_for_it_ends(solo: Client) -> None:
    """The running generation keeps its adapter; the next that names it is told in its turn."""
    expected = await made(solo, adapters=MIX)
    running = solo.generate(**little(adapters=MIX))
    events = aiter(running)
    await watch_until(events, "started")
    queued = asyncio.ensure_future(solo.generate(**little(adapters=MIX, seed=9)).result())
    await asyncio.sleep(0.1)
    await solo.unload_adapter("detail")
    async for _ in events:
        pass
    assert (await running.result()).outputs[0].data == expected
    with pytest.raises(FailedPrecondition) as error:
        await queued
    assert "adapters[1].name" in str(error.value)
    with pytest.raises(NotFound):
        await solo.unload_adapter("detail")
    await solo.load_adapter("detail", "styles/detail.safetensors")
    assert await made(solo, adapters=MIX) == expected


async def test_the_commands_of_the_docs_do_what_they_say(
    solo: Client, on_one: Server, styles: Path, tmp_path: Path
) -> None:
    """Each of them runs; the server's own has the settings of this one."""
    [block] = re.findall(r"```sh\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    serve_line, *lines = [shlex.split(line) for line in block.splitlines()]
    folder = serve_line.index("--adapter-folder") + 1
    assert load([*serve_line[2:folder], str(styles), *serve_line[folder + 1 :]], {}).adapters
    await solo.unload_adapter("detail")
    for line in lines:
        done = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ditcast_client", *line[1:]),
            env={**os.environ, "DITCAST_ADDRESS": on_one.address},
            cwd=tmp_path,
        )
        assert await done.wait() == 0
    assert (tmp_path / "out.png").exists()
    assert [each.name for each in (await solo.list_adapters()).loaded] == ["style"]


async def test_two_ranks_make_the_same_picture(pair: Client, solo: Client) -> None:
    """All ranks hold the same adapters: what they exchange would else make no sense."""
    for name in ("style", "detail"):
        await pair.load_adapter(name, f"styles/{name}.safetensors")
    asked = little(cache=OFF, adapters=MIX)
    assert levels_apart(await made(pair, **asked), await made(solo, **asked)) <= 1


async def test_a_rank_that_dies_in_a_load_takes_nothing_half_with_it(
    on_two: Server, pair: Client
) -> None:
    """The load goes on with new ranks, which get what was loaded before they serve."""
    await pair.load_adapter("style", "styles/style.safetensors")
    before = await made(pair, cache=OFF, adapters=STYLE)
    old = on_two.ranks()
    os.kill(old[1].pid, signal.SIGSTOP)
    loading = asyncio.ensure_future(pair.load_adapter("more", "styles/detail.safetensors"))
    await asyncio.sleep(0.5)
    os.kill(old[1].pid, signal.SIGKILL)
    assert (await loading).name == "more"
    assert "more" in [each.name for each in (await pair.list_adapters()).loaded]
    assert {rank.pid for rank in on_two.ranks()}.isdisjoint(rank.pid for rank in old)
    assert await made(pair, cache=OFF, adapters=STYLE) == before
    more = [AdapterWeight(name="more")]
    assert await made(pair, cache=OFF, adapters=more) != await made(pair, cache=OFF)
    await pair.unload_adapter("more")


async def test_split_layers_take_no_adapters(pair: Client) -> None:
    """The reload into tensor parallelism fails and says why; the old ranks' settings are back."""
    await pair.load_adapter("style", "styles/style.safetensors")
    before = await made(pair, cache=OFF, adapters=STYLE)
    tensor = Configuration(
        parallelism=ParallelismConfig(ulysses_degree=1, tensor_parallel_degree=2)
    )
    with pytest.raises(FailedPrecondition) as error:
        await pair.configure(tensor, allow_reload=True)
    assert error.value.reason == "RELOAD_FAILED"
    assert "split over the ranks" in str(error.value)
    assert await made(pair, cache=OFF, adapters=STYLE) == before
