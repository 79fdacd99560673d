"""Adapters at the edge: which files are listed, what is refused, and what each refusal says."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
from pathlib import Path

import grpc
import msgspec
import pytest
from tests.distributed.generations import ending
from tests.service.conftest import Served
from tests.service.fakes import CONFIGURATION, FACTS

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1.generation_pb2 import AdapterWeight as AdapterWeightMessage
from ditcast_runtime.config import Adapter
from ditcast_runtime.errors import AdapterRefused, ConfigError, InvalidRequest, UnsupportedRequest
from ditcast_runtime.generation import AdapterUse, AdapterWeight, Request
from ditcast_service.adapter_folders import AdapterFolders
from ditcast_service.config import ServerConfig, load
from ditcast_service.translate.request import digest, request_from_proto
from ditcast_service.validation import resolve

TAKING = msgspec.structs.replace(FACTS, adapters_supported=True)
INK = Adapter(
    name="ink",
    file="styles/ink.safetensors",
    path="/styles/ink.safetensors",
    weights_digest="cd" * 32,
    size_bytes=3,
    components=("transformer",),
)
OIL = dataclasses.replace(INK, name="oil", file="styles/oil.safetensors", weights_digest="ef" * 32)


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    """Make a folder with two adapters, and much beside them that is none."""
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    styles = tmp_path / "styles"
    (styles / "old").mkdir(parents=True)
    (styles / "ink.safetensors").write_bytes(b"ink")
    (styles / "old" / "oil.safetensors").write_bytes(b"oil")
    (styles / "pickle.bin").write_bytes(b"no")
    (styles / "folder.safetensors").mkdir()
    (styles / "inside.safetensors").symlink_to("old/oil.safetensors")
    (styles / "outside.safetensors").symlink_to("../secret.safetensors")
    (styles / "broken.safetensors").symlink_to("nowhere")
    (styles / "loop.safetensors").symlink_to("loop.safetensors")
    (styles / "up").symlink_to("..")
    os.mkfifo(styles / "fifo.safetensors")
    Path(os.fsdecode(os.fsencode(styles) + b"/\xff.safetensors")).write_bytes(b"no text")
    (styles / "line\nbreak.safetensors").write_bytes(b"no line")
    return styles


@pytest.fixture
def config(styles: Path) -> ServerConfig:
    """Serve with that folder."""
    return ServerConfig(reader_timeout=0.5, adapter_folder=(str(styles),))


LISTED = ["styles/ink.safetensors", "styles/inside.safetensors", "styles/old/oil.safetensors"]


def test_only_plain_files_within_the_folder_are_listed(styles: Path) -> None:
    """No other kind of file, nothing that a link leads out to, no name that cannot be shown."""
    assert list(AdapterFolders([str(styles)]).available()) == LISTED


async def test_what_is_listed_can_be_loaded_and_nothing_else(served: Served, styles: Path) -> None:
    """Whatever else a caller sends is NOT_FOUND: it is compared, and never made a path."""
    listed = await served.stub.ListAdapters(pb.ListAdaptersRequest())
    assert [each.file for each in listed.available] == LISTED
    for file in (
        "ink.safetensors",
        "styles/../styles/ink.safetensors",
        "styles/./ink.safetensors",
        "styles//ink.safetensors",
        "../secret.safetensors",
        "styles/../secret.safetensors",
        "styles/outside.safetensors",
        "styles/up/secret.safetensors",
        "styles/fifo.safetensors",
        "styles/pickle.bin",
        str(styles / "ink.safetensors"),
        "https://example.org/ink.safetensors",
        "owner/model",
        "styles/ink.safetensors\0",
        "/dev/zero",
        "~/ink.safetensors",
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await served.stub.LoadAdapter(pb.LoadAdapterRequest(name="ink", file=file))
        assert ending(error.value).code is grpc.StatusCode.NOT_FOUND
        assert ending(error.value).reason == "ADAPTER_FILE_NOT_FOUND"
    answer = await served.stub.LoadAdapter(pb.LoadAdapterRequest(name="ink", file=LISTED[0]))
    assert answer.adapter.weights_digest == hashlib.sha256(b"ink").hexdigest()
    assert answer.adapter.size_bytes == 3
    assert list(answer.adapter.components) == ["transformer"]
    assert [each.name for each in served.engine.adapters] == ["ink"]


async def test_each_refusal_has_its_status(served: Served) -> None:
    """A name that cannot be, one that is taken, one that nothing is loaded under, a bad file."""

    async def refused(name: str, file: str) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await served.stub.LoadAdapter(pb.LoadAdapterRequest(name=name, file=file))
        return ending(error.value).code, ending(error.value).reason

    invalid = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    for name in ("", "a b", "../ink", "a" * 65, "ink.1", "tinté"):
        assert await refused(name, LISTED[0]) == invalid
    assert await refused("ink", "") == invalid
    await served.stub.LoadAdapter(pb.LoadAdapterRequest(name="ink", file=LISTED[0]))
    taken = (grpc.StatusCode.ALREADY_EXISTS, "ADAPTER_NAME_TAKEN")
    assert await refused("ink", LISTED[1]) == taken
    served.engine.change_failure = AdapterRefused("oil", "it does not fit")
    unfit = (grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_REFUSED")
    assert await refused("oil", LISTED[1]) == unfit
    await served.stub.UnloadAdapter(pb.UnloadAdapterRequest(name="ink"))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await served.stub.UnloadAdapter(pb.UnloadAdapterRequest(name="ink"))
    assert ending(error.value).code is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await served.stub.UnloadAdapter(pb.UnloadAdapterRequest())
    assert ending(error.value).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_load_that_has_to_wait_ends_at_its_deadline(served: Served) -> None:
    """DEADLINE_EXCEEDED says for certain that nothing was changed."""
    served.engine.between_generations.clear()
    request = pb.LoadAdapterRequest(name="ink", file=LISTED[0])
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await served.stub.LoadAdapter(request, timeout=0.4)
    assert ending(error.value).reason == "NOT_APPLIED"
    served.engine.between_generations.set()
    await asyncio.sleep(0)
    assert served.engine.adapters == ()


def settled(*asked: AdapterWeight, taking: bool = True) -> tuple[AdapterUse, ...]:
    """Settle a request for adapters where ink and oil are loaded."""
    facts = TAKING if taking else FACTS
    request = Request(prompt="a cup", adapters=asked)
    loaded = (INK, OIL)
    return resolve(request, facts, ServerConfig(), CONFIGURATION, adapters=loaded)[0].adapters


def test_a_request_gets_what_is_loaded_under_its_names() -> None:
    """In its order, with its weights and the digests of the files."""
    asked = AdapterWeight(name="oil", weight=-0.5), AdapterWeight(name="ink")
    assert settled(*asked) == (
        AdapterUse(name="oil", weight=-0.5, weights_digest="ef" * 32),
        AdapterUse(name="ink", weight=1.0, weights_digest="cd" * 32),
    )


def test_every_adapter_that_cannot_be_is_named() -> None:
    """Unknown, out of range and asked for twice, all at once, by their paths in the request."""
    wrong = (
        AdapterWeight(name="inc"),
        AdapterWeight(name="ink", weight=10.5),
        AdapterWeight(name="ink", weight=float("nan")),
    )
    with pytest.raises(InvalidRequest) as error:
        settled(*wrong)
    assert [problem.field for problem in error.value.problems] == [
        "adapters[0].name",
        "adapters[1].weight",
        "adapters[2].weight",
        "adapters[2].name",
    ]
    assert "did you mean ink?" in error.value.problems[0].reason


def test_a_pipeline_without_adapters_says_so() -> None:
    """FAILED_PRECONDITION: nothing is wrong with the request."""
    with pytest.raises(UnsupportedRequest):
        settled(AdapterWeight(name="ink"), taking=False)


def test_adapters_are_part_of_what_an_id_stands_for() -> None:
    """Another weight is another request; an unset one is 1."""
    plain = pb.GenerateRequest(prompt="a cup")
    with_ink = pb.GenerateRequest(prompt="a cup", adapters=[AdapterWeightMessage(name="ink")])
    assert digest(plain) != digest(with_ink)
    read, _ = request_from_proto(with_ink)
    assert read.adapters == (AdapterWeight(name="ink", weight=1.0),)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ("--adapter-folder {at}/none", "--adapter-folder"),
        ("--adapter-folder /", "--adapter-folder"),
        ("--adapter-folder {at} --adapter-folder {at}/old/..", "--adapter-folder"),
        ("--adapter ink=styles/ink.safetensors", "--adapter"),
        ("--adapter-folder {at} --adapter ink", "--adapter"),
        ("--adapter-folder {at} --adapter i.k=styles/ink.safetensors", "--adapter"),
        ("--adapter-folder {at} --adapter a={ink} --adapter a={ink}", "--adapter"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(arguments: str, flag: str, styles: Path) -> None:
    """No folder, one without a name, two of one name; no such file or name, one name twice."""
    with pytest.raises(ConfigError) as error:
        load([part.format(at=styles, ink=LISTED[0]) for part in arguments.split()], {})
    assert [problem.field for problem in error.value.problems] == [flag]


def test_adapters_of_the_start_are_described(styles: Path) -> None:
    """By flags or by a variable; the ranks get the path, which no caller sees."""
    flags = ["--adapter-folder", str(styles), "--adapter", f"ink={LISTED[0]}"]
    variables = {"DITCAST_ADAPTER_FOLDER": str(styles), "DITCAST_ADAPTER": f"ink={LISTED[0]}"}
    for made in (load(flags, {}), load([], variables)):
        [adapter] = made.adapters
        assert adapter.path == str(styles / "ink.safetensors")
        assert adapter.weights_digest == hashlib.sha256(b"ink").hexdigest()
