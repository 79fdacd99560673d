"""Loading and warm-up on real ranks: from a hub, from a folder, changed by reload, compiled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tests.distributed.generations import (
    OFF,
    ending,
    fields,
    levels_apart,
    picture,
    small,
    stub_of,
    watched,
)
from tests.distributed.hub import COMMIT, MODEL, Hub, hub_of
from tests.distributed.servers import Server, serve

from ditcast.v1.acceleration_pb2 import (
    COMPILE_REGIONAL,
    OFFLOAD_LAYERWISE,
    OFFLOAD_MODEL,
    Configuration,
    LoadingConfig,
)
from ditcast.v1.diffusion_service_pb2 import (
    ConfigureRequest,
    ConfigureResponse,
    GetCapabilitiesRequest,
    GetConfigurationRequest,
)
from ditcast_client import Client, Result
from ditcast_runtime.config import STARTER_MODEL

ROUNDING = 2
"""Levels of 255 by which another order of sums may move a pixel."""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """Give a hub that has the embedded model."""
    with hub_of(STARTER_MODEL) as hub:
        yield hub


@pytest.fixture(scope="module")
def from_hub(folder: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve a model of a hub on two ranks, its blocks offloaded, with a size warmed up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        server = serve(
            folder,
            *("--model", MODEL, "--model-revision", "main", "--world-size", "2"),
            *("--offload", "layerwise", "--vae-slicing", "--channels-last"),
            *("--component-dtype", "vae=float32", "--warm-up", "64x64@3"),
        )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[Server]:
    """Serve on one rank, to be loaded anew."""
    server = serve(folder)
    yield server
    server.stop()


def stages(server: Server) -> list[tuple[int, str]]:
    """List what the log says of loading: rank and stage."""
    return [
        (entry["rank"], entry["stage"])
        for entry in server.entries()
        if entry.get("event") == "loading"
    ]


async def configure(server: Server, loading: LoadingConfig, *mask: str) -> ConfigureResponse:
    """Send one Configure that may load new ranks."""
    request = ConfigureRequest(
        configuration=Configuration(loading=loading),
        update_mask=FieldMask(paths=mask),
        allow_reload=True,
    )
    async with stub_of(server.address) as stub:
        return await stub.Configure(request, timeout=180)


async def loading_of(server: Server) -> LoadingConfig:
    """Give what is in force."""
    async with stub_of(server.address) as stub:
        return (await stub.GetConfiguration(GetConfigurationRequest())).configuration.loading


async def test_two_ranks_fetch_a_model_once(from_hub: Server, hub: Hub, one: Client) -> None:
    """Each file is downloaded once and read by rank 0 alone; the receipt names the commit."""
    assert hub.downloads
    assert set(hub.downloads.values()) == {1}
    told = stages(from_hub)
    read = told.index((0, "reading the weights"))
    first = next(place for place, (rank, what) in enumerate(told) if rank and "vae" in what)
    assert read < first
    assert (1, "waiting for rank 0 to read the weights") in told[:first]
    assert (1, "reading the weights") not in told
    async with from_hub.client() as client:
        asked = fields(cache=OFF)
        receipt = (await client.generate(**asked).result()).receipt
        local = (await one.generate(**asked).result()).receipt
        assert receipt.model_revision == COMMIT
        assert receipt.weights_digest == local.weights_digest
        assert receipt.configuration.loading.offload == OFFLOAD_LAYERWISE
        assert receipt.configuration.loading.component_dtypes == {"vae": "float32"}
        assert levels_apart(await picture(client, cache=OFF), await picture(one, cache=OFF)) <= (
            ROUNDING
        )


async def test_the_warm_up_is_run_before_serving_and_left_out_of_what_is_measured(
    from_hub: Server,
) -> None:
    """Both ranks log it with its time, before the first SERVING; nobody's queue knows of it."""
    events = [entry for entry in from_hub.entries() if entry.get("event")]
    served = next(n for n, entry in enumerate(events) if entry["event"] == "serving")
    runs = [(n, entry) for n, entry in enumerate(events) if entry["event"] == "warmed up"]
    asked = [(n, entry) for n, entry in runs if entry["run"] == "64x64@3"]
    assert {entry["rank"] for _, entry in asked} == {0, 1}
    assert all(n < served and entry["seconds"] > 0 for n, entry in asked)
    # A size that was only ever warmed up: what is known of others is scaled, as for any size.
    async with from_hub.client() as client:
        _, result = await watched(client.generate(**small(width=64, height=64)))
    assert result.timings.warm_up.ToTimedelta().total_seconds() == 0


async def test_a_reload_that_fails_brings_the_old_ranks_back(local: Server) -> None:
    """Number types that the pipeline cannot mix are found by the new ranks: all stay as before."""
    before = await loading_of(local)
    mixed = LoadingConfig(component_dtypes={"text_encoder": "bfloat16"})
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await configure(local, mixed)
    ended = ending(error.value)
    assert (ended.code, ended.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RELOAD_FAILED")
    assert await loading_of(local) == before
    async with local.client() as client:
        await picture(client)


async def test_what_cannot_be_is_refused_before_a_rank_is_touched(local: Server) -> None:
    """Unknown components and number types, and what needs an accelerator, each by its path."""
    ranks = [rank.pid for rank in local.ranks()]
    wrong = {
        "loading.component_dtypes": LoadingConfig(component_dtypes={"vea": "float32"}),
        "loading.dtype": LoadingConfig(dtype="float31"),
        "loading.offload": LoadingConfig(offload=OFFLOAD_MODEL),
    }
    for path, loading in wrong.items():
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await configure(local, loading)
        assert path in (error.value.details() or "")
    assert [rank.pid for rank in local.ranks()] == ranks


async def test_waiting_for_a_reload_is_told_from_the_other_stages(local: Server) -> None:
    """What waits while ranks load and warm up has that in `load` and `warm_up` alone."""
    async with local.client() as client:
        before = await picture(client)
        result, response = await across_a_reload(local, client, LoadingConfig(vae_slicing=True))
    assert [outcome.path for outcome in response.outcomes] == ["loading.vae_slicing"]
    assert (await loading_of(local)).vae_slicing
    assert result.outputs[0].data == before
    took = times(result)
    assert took["load"] > 0.5
    assert took["warm_up"] > 0.05
    parts = ("queued", "load", "warm_up", "prepare", "denoise", "decode", "encode")
    rest = took["total"] - sum(took[name] for name in parts)
    assert -0.01 < rest < 1
    ended = await local.ended(result.request_id)
    assert ended["load_seconds"] == pytest.approx(took["load"], abs=1e-3)
    assert ended["cache"]["transformer"] == {"computed": 8, "cfg_computed": 8}


@pytest.mark.soak
async def test_compiling_belongs_to_the_warm_up(local: Server) -> None:
    """The first generation does not pay for it, and makes the same picture."""
    async with local.client() as client:
        before = await picture(client)
        compiled = LoadingConfig(compile=COMPILE_REGIONAL)
        result, _ = await across_a_reload(local, client, compiled)
        again = await client.generate(**fields()).result()
    assert times(result)["warm_up"] > 2 * times(again)["denoise"]
    assert times(result)["denoise"] < 3 * times(again)["denoise"] + 1
    assert levels_apart(result.outputs[0].data, before) <= ROUNDING


async def across_a_reload(
    server: Server, client: Client, loading: LoadingConfig
) -> tuple[Result, ConfigureResponse]:
    """Change how ranks are loaded, and meanwhile ask for a picture that has to wait for them."""
    old = {rank.pid for rank in server.ranks()}
    changing = asyncio.create_task(configure(server, loading))
    async with asyncio.timeout(60):
        while old & {rank.pid for rank in server.ranks()}:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    result = await client.generate(**fields()).result()
    return result, await changing


def times(result: Result) -> dict[str, float]:
    """Give the times of a generation in seconds."""
    listed = result.timings.ListFields()
    return {field.name: value.ToTimedelta().total_seconds() for field, value in listed}


async def test_a_size_that_the_model_cannot_make_is_refused_at_the_start(tmp_path: Path) -> None:
    """The ranks know the model's multiples: the start ends with 2, and the size and the reason.

    While they load, callers hear of the stage.
    """
    server = Server(tmp_path, "--warm-up", "70x64")
    told = await stage_told(server)
    assert server.wait() == 2
    assert "warm_up: 70x64@2: both sides must be multiples of 16" in server.tail()
    assert any("loading (" in message for message in told)
    server.expect_no_orphans()


async def stage_told(server: Server) -> list[str]:
    """Ask for the capabilities until the server is gone; give what it said meanwhile."""
    told: list[str] = []
    async with stub_of(server.address) as stub:
        while server.alive:
            try:
                await stub.GetCapabilities(GetCapabilitiesRequest(), timeout=1)
            except grpc.aio.AioRpcError as error:
                told.append(error.details() or "")
            await asyncio.sleep(0.05)
    return told
