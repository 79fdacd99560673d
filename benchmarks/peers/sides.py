"""The servers that are compared, all of them asked in the same way."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil

from benchmarks.peers.environment import VERSION, python_of_cache_dit_serve
from benchmarks.plan import NEGATIVE_PROMPT, SIDE
from benchmarks.processes import Process, Server, running, serving, threads_of
from ditcast_client import Client, DitcastError, TransportBroken
from ditcast_runtime.config import STARTER_MODEL
from ditcast_service.config import ServerConfig

RIVALS = ("cache-dit", "fastapi")
"""Those that ditcast is compared with."""

CACHE = Path(__file__).with_name("cache.yaml")
TRUE_CFG_SCALE = 4.0
"""The pipeline's default: cache-dit's server takes no other."""

_REATTACH = timedelta(seconds=5)
"""How long ditcast's client tries to come back, which after a kill is tried in vain."""

_POLL_SECONDS = 0.1
_START_SECONDS = 300.0

Fields = Mapping[str, Any]
"""Of a request, by the names that all sides have in common."""


class Refused(Exception):
    """The server did not answer with a picture; the text is its own."""


class Gone(Exception):
    """The connection broke."""


class Asking(Protocol):
    """One client of a server."""

    async def ask(self, fields: Fields) -> bytes:
        """Ask for a picture and give it as PNG; a task that is cancelled meanwhile leaves.

        Raises:
            Refused: it answered with something else.
            Gone: it did not answer.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A running server."""

    name: str
    title: str
    same_bits: bool
    """Whether its pictures have to be those of the direct call, bit by bit."""
    connect: Callable[[], AbstractAsyncContextManager[Asking]]
    """Makes a client with a connection of its own."""
    model_processes: Callable[[], list[psutil.Process]]
    """Gives the processes that hold the model."""
    server_process: psutil.Process
    """The one that listens."""


def request(prompt: str, seed: int, steps: int) -> dict[str, Any]:
    """Make a request that all sides understand."""
    return {
        "prompt": prompt,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": steps,
        "seed": seed,
    }


class _DitcastClient:
    """A client of ditcast; one that leaves says so, as its connection may come back."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ask(self, fields: Fields) -> bytes:
        try:
            made = self._client.generate(true_cfg_scale=TRUE_CFG_SCALE, **fields)
            async with made:
                return (await made.result()).outputs[0].data
        except TransportBroken as error:
            raise Gone(str(error)) from error
        except DitcastError as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        except (TypeError, ValueError) as error:
            raise Refused(f"not sent, {type(error).__name__}: {error}") from error


def batches() -> bool:
    """Say whether this ditcast can make pictures of several clients together."""
    return "max_batch_size" in {field.name for field in dataclasses.fields(ServerConfig)}


@contextlib.asynccontextmanager
async def ditcast(
    *options: str, name: str = "ditcast", same_bits: bool = True
) -> AsyncIterator[Side]:
    """Run `ditcast serve` on one rank."""

    def side(server: Server) -> Side:
        @contextlib.asynccontextmanager
        async def connect() -> AsyncIterator[Asking]:
            async with Client(server.address, reattach=_REATTACH) as client:
                yield _DitcastClient(client)

        return Side(
            name=name,
            title=name.replace("_", ", "),
            same_bits=same_bits,
            connect=connect,
            model_processes=server.ranks,
            server_process=psutil.Process(server.process_id),
        )

    async with serving(1, *options, cache=CACHE) as server:
        yield side(server)


class _HttpClient:
    """A client of a server that takes JSON at /generate."""

    def __init__(
        self, client: httpx.AsyncClient, picture: Callable[[httpx.Response], bytes]
    ) -> None:
        self._client = client
        self._picture = picture

    async def ask(self, fields: Fields) -> bytes:
        try:
            answer = await self._client.post("/generate", json=dict(fields))
        except httpx.TransportError as error:
            raise Gone(f"{type(error).__name__}: {error}") from error
        if answer.status_code != httpx.codes.OK:
            raise Refused(f"{answer.status_code}: {answer.text}")
        return self._picture(answer)


@contextlib.asynccontextmanager
async def cache_dit_serve() -> AsyncIterator[Side]:
    """Run cache-dit's own server, with the settings of `CACHE` as its flags have them."""
    python = await python_of_cache_dit_serve()
    command = [str(python), "-m", "cache_dit.serve.serve", "--model-path", str(STARTER_MODEL)]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"]
    command += ["--cache", "--Fn", "1", "--Bn", "0", "--rdt", "0.12"]
    command += ["--max-warmup-steps", "4", "--warmup-interval", "1"]
    command += ["--max-cached-steps", "-1", "--max-continuous-cached-steps", "2"]

    def picture(answer: httpx.Response) -> bytes:
        return base64.b64decode(answer.json()["images"][0])

    title = f"cache_dit.serve {VERSION}"
    async with _http("cache-dit", title, command, picture, same_bits=False) as side:
        yield side


@contextlib.asynccontextmanager
async def fastapi() -> AsyncIterator[Side]:
    """Run the server beside this file."""
    command = [sys.executable, "-m", "benchmarks.peers.fastapi_server"]
    command += ["--model", str(STARTER_MODEL), "--cache-dit-config", str(CACHE)]

    def picture(answer: httpx.Response) -> bytes:
        return answer.content

    async with _http("fastapi", "FastAPI", command, picture, same_bits=True) as side:
        yield side


@contextlib.asynccontextmanager
async def _http(
    name: str,
    title: str,
    command: list[str],
    picture: Callable[[httpx.Response], bytes],
    *,
    same_bits: bool,
) -> AsyncIterator[Side]:
    port = _free_port()
    address = f"http://127.0.0.1:{port}"

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Asking]:
        async with httpx.AsyncClient(**_patient(address)) as client:
            yield _HttpClient(client, picture)

    with tempfile.TemporaryDirectory(prefix="ditcast-bench-") as folder:
        whole = [*command, "--port", str(port)]
        async with running(whole, threads_of(1), Path(folder)) as process:
            await _healthy(address, process)
            server = psutil.Process(process.id)
            yield Side(
                name=name,
                title=title,
                same_bits=same_bits,
                connect=connect,
                model_processes=lambda: [server],
                server_process=server,
            )


def _patient(address: str) -> dict[str, Any]:
    """Wait for as long as it takes, as ditcast's client does."""
    return {"base_url": address, "timeout": None, "trust_env": False}


async def _healthy(address: str, process: Process) -> None:
    """Wait until it answers; ProcessFailed if it ends before that."""
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
        async with asyncio.timeout(_START_SECONDS):
            while True:
                if process.ended:
                    raise process.failed()
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/health")).status_code == httpx.codes.OK:
                        return
                await asyncio.sleep(_POLL_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
