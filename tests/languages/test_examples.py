"""The example program of each language: a picture, what is wrong, Ctrl-C, and what is no picture.

Each takes an address, a prompt and a file, and shows a mark for each step.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from PIL import Image
from tests.clients.scripted import (
    Once,
    ScriptedService,
    completed,
    queued,
    started,
    status,
    steps,
)
from tests.clients.scripted import chunks as cut
from tests.languages.builds import Example

from ditcast.v1.diffusion_service_pb2_grpc import add_DiffusionServiceServicer_to_server
from ditcast.v1.generation_pb2 import GenerationState, GenerationSummary
from ditcast_client import BlockingClient

pytestmark = pytest.mark.mesh

PROMPT = "a red circle left of a blue square on a yellow background"
MARKS = "█·#."
END_SECONDS = 60.0


@pytest.fixture
def client(direct: str) -> Iterator[BlockingClient]:
    """Connect to the server; whatever still runs is ended afterwards."""
    with BlockingClient(direct) as client:
        yield client
        for summary in client.list_generations():
            client.cancel(summary.request_id)


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def test_it_makes_a_picture(example: Example, address: str, tmp_path: Path) -> None:
    """With a mark for each step, and the figures of the receipt in the end."""
    file = tmp_path / "out.png"
    done = run(example.call(address, PROMPT, file))
    assert done.returncode == 0, done.stderr
    assert sum(done.stderr.count(mark) for mark in MARKS) == 20
    assert done.stdout.strip() == f"{file}: image/png, seed 42, 0 steps cached"
    expect_picture(file)


def expect_picture(file: Path) -> None:
    """Expect what the embedded model draws, and no plain area."""
    with Image.open(file) as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (128, 128), "RGB")
        assert len(picture.getcolors(128 * 128) or ()) > 100


def test_the_same_picture_comes_through_grpc_web(
    typescript_example: Example, through_envoy: str, tmp_path: Path
) -> None:
    """As a browser asks for it."""
    file = tmp_path / "out.png"
    done = run(typescript_example.call(through_envoy, PROMPT, file, "web"))
    assert done.returncode == 0, done.stderr
    expect_picture(file)


def test_it_says_which_fields_are_wrong(example: Example, address: str, tmp_path: Path) -> None:
    """By the details of the status, after its reason, with exit code 1 and no file."""
    file = tmp_path / "out.png"
    done = run(example.call(address, "", file))
    assert done.returncode == 1
    assert "(INVALID_REQUEST)" in done.stderr
    assert "\n  prompt: it is required\n" in done.stderr
    assert not file.exists()


def test_ctrl_c_cancels_the_generation(
    example: Example, address: str, client: BlockingClient, tmp_path: Path
) -> None:
    """While it waits behind another one, so that it cannot have ended."""
    before = client.generate(prompt=PROMPT, num_inference_steps=1000)
    events = iter(before)  # Dropped, it would cancel the generation.
    next(events)
    command = example.call(address, PROMPT, tmp_path / "out.png")
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        # Shells start what is in the background with SIGINT ignored, and Java keeps to that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        try:
            mine = waiting(client, before.request_id)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=END_SECONDS)
        finally:
            process.kill()
            before.close()
    assert process.returncode not in {0, -signal.SIGINT}
    assert "(CANCELLED)" in said
    states = {each.request_id: each.state for each in client.list_generations()}
    assert states[mine] == GenerationState.GENERATION_STATE_CANCELLED


def waiting(client: BlockingClient, before: str) -> str:
    """Wait until another generation is in the queue, and give its id."""
    limit = time.monotonic() + END_SECONDS
    while time.monotonic() < limit:
        queue: list[GenerationSummary] = [
            each
            for each in client.list_generations()
            if each.state == GenerationState.GENERATION_STATE_QUEUED and each.request_id != before
        ]
        if queue:
            return queue[0].request_id
        time.sleep(0.05)
    pytest.fail("the example has not asked for anything")


async def test_what_is_not_the_receipts_is_no_picture(example: Example, tmp_path: Path) -> None:
    """Other bytes of the same length are told as such, and not written."""
    script = (queued(), started(), *steps(), *cut(b"other bytes"), completed(b"right bytes"))
    done, file = await played(ScriptedService(script=script), example, tmp_path)
    assert done.returncode == 1
    assert "is not what its receipt says" in done.stderr
    assert not file.exists()


async def test_a_broken_stream_goes_on_by_its_route(reattaching: Example, tmp_path: Path) -> None:
    """What a proxy said of the server goes back with the call that watches on, and only then."""
    broken = Once(status(grpc.StatusCode.UNAVAILABLE, "connection reset"))
    script = (queued(), started(), *steps(), broken, *cut(b"bytes"), completed(b"bytes"))
    service = ScriptedService(script=script, route="the-second-server")
    done, file = await played(service, reattaching, tmp_path)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == b"bytes"
    assert (len(service.requests), len(service.watches)) == (1, 1)
    assert service.routes == [None, "the-second-server"]


async def played(
    service: ScriptedService, example: Example, folder: Path
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run an example against a scripted server; give how it ended, and the file it was to write."""
    server = grpc.aio.server()
    add_DiffusionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    file = folder / "out.png"
    done = await asyncio.to_thread(run, example.call(f"127.0.0.1:{port}", PROMPT, file))
    await server.stop(None)
    return done, file
