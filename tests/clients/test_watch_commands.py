"""`ditcast watch` and `ditcast list`, as a user runs them, and a connection that breaks."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from google.protobuf import json_format
from grpc import StatusCode
from tests.clients.conftest import Scripted
from tests.clients.scripted import (
    Once,
    UntilCancelled,
    ours,
    queued,
    started,
    status,
    step,
    success,
)
from tests.clients.test_commands import PICTURE, ditcast, finish, start

from ditcast.v1.generation_pb2 import (
    DisconnectPolicy,
    GenerationState,
    GenerationSummary,
)


async def test_watch_shows_and_writes_as_generate_does(server: Scripted, tmp_path: Path) -> None:
    """The same lines, and the file's ending by what it holds."""
    server.service.script = success(PICTURE)
    server.service.known.add("theirs")
    done = await ditcast(server, "watch", "theirs", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "out.png").read_bytes() == PICTURE
    lines = done.out.splitlines()
    assert lines[:2] == ["queued: next", "started: 128x128, 5 steps, seed 7"]
    assert lines[7] == "output  out.png (image/png, 5.0 KiB)"
    done = await ditcast(server, "watch", "theirs", "-o", "new/a.bin", "--json", folder=tmp_path)
    assert (done.code, done.err) == (0, "wrote new/a.bin\n")
    assert len(done.out.splitlines()) == len(server.service.script)
    assert (tmp_path / "new" / "a.bin").read_bytes() == PICTURE


async def test_watch_of_what_is_not_there(server: Scripted, tmp_path: Path) -> None:
    """An unknown id is refused; so is a place that cannot be written to, before anything else."""
    done = await ditcast(server, "watch", "nobody", folder=tmp_path)
    assert (done.code, done.err) == (2, "refused: no such id\n")
    (tmp_path / "file").write_text("text")
    done = await ditcast(server, "watch", "nobody", "-o", "file/a.png", folder=tmp_path)
    assert done.code == 2
    assert "cannot write to file" in done.err
    assert len(server.service.watches) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_watch_cancels_nothing(
    server: Scripted, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C leaves the generation to its other readers, and says so."""
    server.service.known.add("theirs")
    server.service.script = [queued(), started(), step(1), UntilCancelled()]
    process = await start(server, "watch", "theirs", folder=tmp_path)
    assert process.stdout is not None
    while not (await process.stdout.readline()).startswith(b"step 1/5"):
        pass
    process.send_signal(number)
    done = await finish(process)
    assert (done.code, done.err) == (130, "left: theirs was not cancelled\n")
    assert server.service.cancelled == []


async def test_a_watch_tells_of_a_cancel(server: Scripted, tmp_path: Path) -> None:
    """Somebody else's cancel is no leaving."""
    server.service.known.add("theirs")
    end = status(StatusCode.CANCELLED, "cancelled", ours("CANCELLED", steps_done="3"))
    server.service.script = [queued(), started(), end]
    done = await ditcast(server, "watch", "theirs", folder=tmp_path)
    assert (done.code, done.err) == (130, "cancelled after 3 steps\n")


async def test_a_break_is_told_and_mended(server: Scripted, tmp_path: Path) -> None:
    """`generate` goes on where it was, with a word about it on the standard error."""
    script = success(PICTURE)
    broken = Once(status(StatusCode.UNAVAILABLE, "the word of a proxy"))
    server.service.script = [*script[:4], broken, *script[4:]]
    done = await ditcast(server, "generate", "a red cup", folder=tmp_path)
    assert (done.code, done.err) == (0, "connection lost, trying again: the word of a proxy\n")
    assert (tmp_path / "out.png").read_bytes() == PICTURE
    assert [line for line in done.out.splitlines() if line.startswith("step 2")] == [
        "step 2/5 computed, 120 ms, 360 ms left"
    ]


async def test_what_may_continue_is_asked_for(server: Scripted, tmp_path: Path) -> None:
    """--on-disconnect continue, and no window beside it."""
    server.service.script = success(PICTURE)
    arguments = ("generate", "a red cup", "--on-disconnect", "continue")
    assert (await ditcast(server, *arguments, folder=tmp_path)).code == 0
    (sent,) = server.service.requests
    assert sent.on_disconnect == DisconnectPolicy.DISCONNECT_POLICY_CONTINUE
    assert not sent.HasField("reattach_window")


def fill(server: Scripted) -> None:
    """Let the server know three generations."""
    waiting = GenerationSummary(request_id="waiting", total_steps=20, position=3)
    waiting.state = GenerationState.GENERATION_STATE_QUEUED
    running = GenerationSummary(request_id="running", step=4, total_steps=20, readers=2)
    running.state = GenerationState.GENERATION_STATE_RUNNING
    running.configuration_revision = 7
    done = GenerationSummary(request_id="done", step=20, total_steps=20)
    done.state = GenerationState.GENERATION_STATE_SUCCEEDED
    for summary in (waiting, running, done):
        summary.create_time.FromSeconds(1_700_000_000)
    done.end_time.FromMilliseconds(1_700_000_012_500)
    server.service.generations = [waiting, running, done]


async def test_list(server: Scripted, tmp_path: Path) -> None:
    """A line for each, the newest first."""
    fill(server)
    done = await ditcast(server, "list", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines() if line.strip()]
    assert [row[0] for row in rows if row[0] in ("waiting", "running", "done")] == [
        "waiting",
        "running",
        "done",
    ]
    assert "queued, 3 before it" in done.out
    assert "4/20" in done.out
    assert "12.5 s" in done.out
    assert server.service.lists[0].page_size == 50


async def test_list_for_programs(server: Scripted, tmp_path: Path) -> None:
    """--json is a message a line; --state and --limit narrow it down."""
    fill(server)
    arguments = ("list", "--json", "--state", "running", "--state", "succeeded", "--limit", "0")
    done = await ditcast(server, *arguments, folder=tmp_path)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["requestId"] for line in lines] == ["running", "done"]
    for line in lines:
        json_format.ParseDict(line, GenerationSummary())
    assert server.service.lists[0].page_size == 1000
    done = await ditcast(server, "list", "--limit", "-1", folder=tmp_path)
    assert (done.code, done.err) == (2, "refused: --limit -1 is less than 0\n")
    assert (await ditcast(server, "list", "--state", "asleep", folder=tmp_path)).code == 2
