"""The commands as a user runs them: real processes against a scripted server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from tests.clients.conftest import Scripted
from tests.clients.scripted import (
    UntilCancelled,
    chunks,
    completed,
    ours,
    queued,
    started,
    status,
    step,
    success,
)

from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast.v1.generation_pb2 import (
    GenerationEvent,
    InputImageRole,
    OutputFormat,
    OutputOptions,
    Preview,
    Priority,
    Warning,  # noqa: A004  # the contract's word
)

PICTURE = bytes(range(256)) * 20


@dataclass(frozen=True)
class Done:
    """What a process left behind."""

    code: int
    out: str
    err: str


def pictures(folder: Path) -> list[Path]:
    """List what was written."""
    return list(folder.glob("*.png"))


async def start(server: Scripted, *arguments: str, folder: Path) -> asyncio.subprocess.Process:
    """Start the command in a folder of its own, with the server's address in the environment."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ditcast_client", *arguments),
        cwd=folder,
        env={**os.environ, "DITCAST_ADDRESS": server.address},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish(process: asyncio.subprocess.Process) -> Done:
    """Wait for the end of a process."""
    out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def ditcast(server: Scripted, *arguments: str, folder: Path) -> Done:
    """Run a command to its end."""
    return await finish(await start(server, *arguments, folder=folder))


async def test_generate_writes_the_picture_and_says_what_happened(
    server: Scripted, tmp_path: Path
) -> None:
    """On a pipe there is a plain line for each event, then where the picture lies and the rest."""
    server.service.script = success(PICTURE)
    done = await ditcast(server, "generate", "a red cup", "-o", "new/cup.png", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "new" / "cup.png").read_bytes() == PICTURE
    assert done.out.splitlines() == [
        "queued: next",
        "started: 128x128, 5 steps, seed 7",
        "step 1/5 computed, 120 ms, 480 ms left",
        "step 2/5 computed, 120 ms, 360 ms left",
        "step 3/5 cached, 120 ms, 240 ms left",
        "step 4/5 computed, 120 ms, 120 ms left",
        "step 5/5 cached, 120 ms",
        "output  new/cup.png (image/png, 5.0 KiB)",
        "seed    7",
        "steps   5: 3 computed, 2 cached",
        "time    700 ms, with warm-up excluded",
        (
            "        queued 0 s, prepare 0 s (prompt 0 s), denoise 600 ms (a step 120 ms), "
            "decode 0 s, encode 0 s"
        ),
        "memory  rank 0: 3.0 MiB at most, 5.0 GiB free",
    ]


async def test_several_pictures_are_numbered(server: Scripted, tmp_path: Path) -> None:
    """Several outputs become cup-0.png, cup-1.png and so on."""
    server.service.script = success(PICTURE, PICTURE[::-1])
    arguments = ("generate", "a red cup", "-o", "cup.png", "--num-images", "2")
    assert (await ditcast(server, *arguments, folder=tmp_path)).code == 0
    assert (tmp_path / "cup-0.png").read_bytes() == PICTURE
    assert (tmp_path / "cup-1.png").read_bytes() == PICTURE[::-1]


async def test_json_lines(server: Scripted, tmp_path: Path) -> None:
    """With --json each line is an event in protobuf JSON; bytes are told by their number."""
    preview = GenerationEvent(preview=Preview(step=1, data=b"1234", media_type="image/jpeg"))
    server.service.script = [*success(PICTURE)[:3], preview, *success(PICTURE)[3:]]
    done = await ditcast(server, "generate", "a red cup", "--json", folder=tmp_path)
    assert (done.code, done.err) == (0, "wrote out.png\n")
    assert (tmp_path / "out.png").read_bytes() == PICTURE
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines) == len(server.service.script)
    assert [int(line["sequence"]) for line in lines] == list(range(1, len(lines) + 1))
    sizes = [line["outputChunk"].pop("dataBytes") for line in lines if "outputChunk" in line]
    assert sum(sizes) == len(PICTURE)
    assert [line["preview"].pop("dataBytes") for line in lines if "preview" in line] == [4]
    for line in lines:
        json_format.ParseDict(line, GenerationEvent())


async def test_options_become_the_request(server: Scripted, tmp_path: Path) -> None:
    """Every option reaches its field; what is left out stays unset."""
    server.service.script = success(PICTURE)
    (tmp_path / "cache.json").write_text('{"dbCache": {"fnComputeBlocks": 4}}')
    arguments = (
        *("generate", "a red cup", "-o", "cup.webp", "--quality", "80"),
        *("--negative-prompt", "", "--width", "64", "--height", "96", "--steps", "3"),
        *("--guidance-scale", "0.12", "--true-cfg-scale", "4", "--seed", str(2**64 - 1)),
        *("--num-images", "1", "--sigmas", "1,0.5,0.25", "--timeout", "1.5"),
        *("--pipeline-kwargs", '{"max_sequence_length": 64}', "--cache", "cache.json"),
        *("--request-id", "mine", "--priority", "high"),
    )
    assert (await ditcast(server, *arguments, folder=tmp_path)).code == 0
    expected = GenerateRequest(
        request_id="mine",
        prompt="a red cup",
        negative_prompt="",
        width=64,
        height=96,
        num_inference_steps=3,
        guidance_scale=0.12,
        true_cfg_scale=4,
        seed=2**64 - 1,
        num_images=1,
        sigmas=[1, 0.5, 0.25],
        output=OutputOptions(format=OutputFormat.OUTPUT_FORMAT_WEBP, quality=80),
        priority=Priority.PRIORITY_HIGH,
    )
    expected.timeout.FromMilliseconds(1500)
    expected.reattach_window.FromSeconds(30)
    expected.pipeline_kwargs.update({"max_sequence_length": 64})
    expected.cache.db_cache.fn_compute_blocks = 4
    assert server.service.requests == [expected]


async def test_what_is_left_out_stays_unset(server: Scripted, tmp_path: Path) -> None:
    """Without options the server decides about everything, the form of the file too."""
    server.service.script = success(PICTURE)
    await ditcast(server, "generate", "a red cup", folder=tmp_path)
    (sent,) = server.service.requests
    assert {field.name for field, _ in sent.ListFields()} == {
        *("request_id", "prompt", "output", "priority", "reattach_window")
    }
    assert sent.output == OutputOptions()


async def test_input_pictures_are_sent_with_their_roles(server: Scripted, tmp_path: Path) -> None:
    """Files are read by the command, several of a role if need be, and sent in order."""
    server.service.script = success(PICTURE)
    for name in ("a", "b", "m", "c", "z"):
        (tmp_path / name).write_bytes(name.encode())
    options = ["--image", "a", "--image", "b", "--mask", "m", "--control", "c", "--last-frame", "z"]
    options += ["--num-frames", "17", "--fps", "8", "-o", "x.mp4"]
    await ditcast(server, "generate", "a red cup", *options, folder=tmp_path)
    (sent,) = server.service.requests
    assert [(image.data, image.role) for image in sent.images] == [
        (b"a", InputImageRole.INPUT_IMAGE_ROLE_IMAGE),
        (b"b", InputImageRole.INPUT_IMAGE_ROLE_IMAGE),
        (b"m", InputImageRole.INPUT_IMAGE_ROLE_MASK),
        (b"c", InputImageRole.INPUT_IMAGE_ROLE_CONTROL),
        (b"z", InputImageRole.INPUT_IMAGE_ROLE_LAST_FRAME),
    ]
    assert (sent.num_frames, sent.fps) == (17, 8)
    assert sent.output.format == OutputFormat.OUTPUT_FORMAT_MP4


async def test_validate_only_writes_nothing(server: Scripted, tmp_path: Path) -> None:
    """--validate-only prints what the request was understood as."""
    server.service.script = [started(seed=99)]
    done = await ditcast(server, "generate", "a red cup", "--validate-only", folder=tmp_path)
    assert done.code == 0
    assert "num_inference_steps  5" in done.out
    assert "seed                 99" in done.out
    assert pictures(tmp_path) == []


async def test_warnings_are_shown(server: Scripted, tmp_path: Path) -> None:
    """A warning names the field that it is about."""
    warning = Warning(field="guidance_scale", message="has no effect on this model")
    server.service.script = [queued(2), GenerationEvent(warning=warning), *success(PICTURE)[1:]]
    done = await ditcast(server, "generate", "a red cup", folder=tmp_path)
    assert "queued: 2 before this one\n" in done.out
    assert "warning: guidance_scale: has no effect on this model\n" in done.out


RETRY = RetryInfo()
RETRY.retry_delay.seconds = 3
WIDTH = BadRequest(
    field_violations=[BadRequest.FieldViolation(field="width", description="not a multiple of 16")]
)


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        (
            status(StatusCode.INVALID_ARGUMENT, "1 field", ours("INVALID"), WIDTH),
            2,
            "refused:\n  width: not a multiple of 16\n",
        ),
        (status(StatusCode.FAILED_PRECONDITION, "no", ours("X")), 2, "refused: no\n"),
        (status(StatusCode.ALREADY_EXISTS, "used", ours("X")), 2, "refused: used\n"),
        (status(StatusCode.UNIMPLEMENTED, "not yet", ours("X")), 2, "refused: not yet\n"),
        (status(StatusCode.UNAUTHENTICATED, "who?", ours("X")), 2, "refused: who?\n"),
        (status(StatusCode.RESOURCE_EXHAUSTED, "memory", ours("X")), 2, "refused: memory\n"),
        (
            status(StatusCode.RESOURCE_EXHAUSTED, "queue full", ours("X"), RETRY),
            3,
            "unavailable: queue full (try again in 3 s)\n",
        ),
        (
            status(StatusCode.UNAVAILABLE, "draining", ours("X"), RETRY),
            3,
            "unavailable: draining (try again in 3 s)\n",
        ),
        (
            status(StatusCode.DEADLINE_EXCEEDED, "too long", ours("X", steps_done="2")),
            4,
            "time limit: it ran out after 2 steps\n",
        ),
        (
            status(StatusCode.CANCELLED, "somebody else", ours("X", steps_done="1")),
            130,
            "cancelled after 1 step\n",
        ),
        (status(StatusCode.INTERNAL, "see e-1", ours("X")), 1, "failed: see e-1\n"),
    ],
)
async def test_exit_codes(
    server: Scripted, tmp_path: Path, end: Status, code: int, says: str
) -> None:
    """Refused, unavailable, out of time, cancelled and failed have codes of their own."""
    server.service.script = [queued(), end]
    done = await ditcast(server, "generate", "a red cup", folder=tmp_path)
    assert (done.code, done.err) == (code, says)
    assert pictures(tmp_path) == []


async def test_a_server_that_never_answers_is_soon_given_up(
    server: Scripted, tmp_path: Path
) -> None:
    """Where nothing ever came, coming back again and again would only look busy."""
    server.service.script = [status(StatusCode.UNAVAILABLE, "a proxy's word")]
    done = await ditcast(server, "generate", "a red cup", folder=tmp_path)
    assert (done.code, done.err) == (3, "unavailable: a proxy's word\n")
    assert len(server.service.requests) + len(server.service.watches) > 1


async def test_damaged_output_is_a_failure(server: Scripted, tmp_path: Path) -> None:
    """Bytes that are not those of the receipt are not written."""
    server.service.script = [queued(), started(), *chunks(PICTURE[::-1]), completed(PICTURE)]
    done = await ditcast(server, "generate", "a red cup", folder=tmp_path)
    assert done.code == 1
    assert "its receipt says" in done.err
    assert pictures(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate"], "required: prompt"),
        (["generate", "x", "-o", "cup.tiff"], "no form has this ending"),
        (["generate", "x", "-o", "."], "is a folder"),
        (["generate", "x", "-o", "file/cup.png"], "cannot write"),
        (["generate", "x", "--seed", "-1"], "out of range"),
        (["generate", "x", "--pipeline-kwargs", "{"], "not JSON"),
        (["generate", "x", "--pipeline-kwargs", "[1]"], "must be a JSON object"),
        (["generate", "x", "--cache", "nowhere.json"], "cannot read nowhere.json"),
        (["generate", "x", "--cache", "file"], "not a CacheConfig"),
        (["generate", "x", "--sigmas", "1,a"], "--sigmas"),
        (["generate", "x", "--timeout", "nan"], "refused: cannot convert float NaN"),
        (["generate", "x", "--timeout", "inf"], "refused: cannot convert float infinity"),
        (["nonsense"], "invalid choice"),
        ([], "required: COMMAND"),
    ],
)
async def test_bad_usage_is_refused_before_anything_is_sent(
    server: Scripted, tmp_path: Path, arguments: Sequence[str], says: str
) -> None:
    """What cannot be is said at once, with exit code 2, and the server hears nothing of it."""
    (tmp_path / "file").write_text("text")
    done = await ditcast(server, *arguments, folder=tmp_path)
    assert done.code == 2
    assert says in done.err
    assert "Traceback" not in done.err
    assert server.service.requests == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupt_cancels_explicitly(
    server: Scripted, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C sends CancelGeneration, waits for the end and says after how many steps it came."""
    server.service.script = [queued(), started(), step(1), step(2), UntilCancelled()]
    process = await start(server, "generate", "a red cup", folder=tmp_path)
    assert process.stdout is not None
    while not (await process.stdout.readline()).startswith(b"step 2/5"):
        pass
    process.send_signal(number)
    done = await finish(process)
    assert (done.code, done.err) == (130, "cancelled after 2 steps\n")
    assert server.service.cancelled == [server.service.requests[0].request_id]


async def test_interrupt_without_an_answer_still_ends(server: Scripted, tmp_path: Path) -> None:
    """Where the server does not know the generation, Ctrl-C leaves it."""
    server.service.cancel_status = status(StatusCode.NOT_FOUND, "no such id", ours("X"))
    server.service.script = [queued(), started(), step(1), UntilCancelled()]
    process = await start(server, "generate", "a red cup", folder=tmp_path)
    assert process.stdout is not None
    while not (await process.stdout.readline()).startswith(b"step 1/5"):
        pass
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert (done.code, done.err) == (130, "cancelled after 1 step\n")


async def test_a_reader_that_leaves_cancels(server: Scripted, tmp_path: Path) -> None:
    """In `ditcast generate ... | head -1`, the end of head ends the generation."""
    server.service.script = [queued(), started(), *[step(1)] * 5000, UntilCancelled()]
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m ditcast_client generate x --address {server.address} | head -1;"
        'exit "${PIPESTATUS[0]}"',
        executable="/bin/bash",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    done = await finish(process)
    assert (done.code, done.out, done.err) == (130, "queued: next\n", "")
    assert len(server.service.cancelled) == 1


async def test_a_reader_that_leaves_is_no_traceback(server: Scripted, tmp_path: Path) -> None:
    """Output that nobody reads any more is no fault of the command."""
    process = await start(server, "info", folder=tmp_path)
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]
    done = await finish(process)
    assert (done.code, done.err) == (130, "")


async def test_info(server: Scripted, tmp_path: Path) -> None:
    """`info` shows capabilities and configuration, for eyes and for programs."""
    done = await ditcast(server, "info", folder=tmp_path)
    assert done.code == 0
    for part in ("QwenImagePipeline", "1 to 1000", "not with context parallelism", "revision 7"):
        assert part in done.out
    done = await ditcast(server, "info", "--json", folder=tmp_path)
    shown = json.loads(done.out)
    assert shown["capabilities"]["worldSize"] == 2
    assert shown["configuration"]["cache"]["dbCache"]["fnComputeBlocks"] == 4


async def test_cancel(server: Scripted, tmp_path: Path) -> None:
    """`cancel` answers the state that it met; an unknown id is refused."""
    done = await ditcast(server, "cancel", "some-id", folder=tmp_path)
    assert (done.code, done.out) == (0, "some-id was running\n")
    assert server.service.cancelled == ["some-id"]
    server.service.cancel_status = status(StatusCode.NOT_FOUND, "no such id", ours("X"))
    done = await ditcast(server, "cancel", "nobody", folder=tmp_path)
    assert (done.code, done.err) == (2, "refused: no such id\n")


async def test_no_server_is_unavailable(tmp_path: Path) -> None:
    """Where nobody listens, the exit code says that trying again later may help."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ditcast_client", "info", "--address", f"unix:{tmp_path}/nobody"),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    done = await finish(process)
    assert done.code == 3
    assert done.err.startswith("unavailable: ")
