"""What a caller sends stays what it is: no path, no URL, no pickle comes of it in any process."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tests.campaigns.hostile.campaign import BURST, Caller
from tests.campaigns.hostile.messages import METHODS, SOUND
from tests.campaigns.hostile.targets import STARTER
from tests.campaigns.hostile.wire import Sent
from tests.distributed.servers import Server

from ditcast_runtime.channel import FrameBuffer, unpack
from ditcast_runtime.messages import Command, Report

Place = tuple[str, ...]
"""Names of the fields that lead to a text."""

STRUCT = "google.protobuf.Struct"
ARGUMENTS = (
    *("image", "mask_image", "control_image", "ip_adapter_image", "video", "prompt_embeds_path"),
    *("max_sequence_length", "attention_kwargs", "generator", "latents", "x"),
)
_IN_ACCESS_OR_OPEN = 0x1 | 0x20
ALIVE_SECONDS = 30.0
"""Within which a rank has nothing else to do for one: more than enough."""


def places(kind: Descriptor, depth: int = 0) -> Iterator[Place]:
    """List every text that a message of a kind can hold; of a Struct, some of its keys."""
    for field in kind.fields:
        inner = field.message_type
        if field.type == field.TYPE_STRING:
            yield (field.name,)
        elif inner is not None and inner.full_name == STRUCT:
            yield from ((field.name, key) for key in ARGUMENTS)
        elif inner is not None and depth < 4:
            yield from ((field.name, *rest) for rest in places(inner, depth + 1))


def put(message: Any, place: Place, text: str) -> None:  # noqa: ANN401 (any kind of message)
    """Set one text, wherever it is."""
    name, *rest = place
    field = message.DESCRIPTOR.fields_by_name[name]
    inner = field.message_type
    if inner is None:
        if field.is_repeated:
            getattr(message, name).append(text)
        else:
            setattr(message, name, text)
    elif inner.full_name == STRUCT:
        getattr(message, name).fields[rest[0]].string_value = text
    elif inner.GetOptions().map_entry:
        getattr(message, name)[text if rest[0] == "key" else "transformer"] = text
    else:
        target = getattr(message, name)
        put(target.add() if field.is_repeated else target, tuple(rest), text)


def requests(text: str) -> Iterator[Sent]:
    """Give a request of each RPC for each text that it can hold."""
    for method, described in METHODS.items():
        for place in places(described.input_type):
            message: Message = GetMessageClass(described.input_type)()
            base = STARTER.sound if method == "Generate" else SOUND.get(method)
            if base is not None:
                message.CopyFrom(base)
            put(message, place, text)
            yield Sent(method, message.SerializeToString())


@contextlib.contextmanager
def opened(file: Path) -> Iterator[list[bytes]]:
    """Take note of whoever opens or reads a file, in whatever process."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(descriptor, os.fsencode(file), _IN_ACCESS_OR_OPEN) >= 0
    events: list[bytes] = []
    try:
        yield events
        with contextlib.suppress(BlockingIOError):
            events.append(os.read(descriptor, 4096))
    finally:
        os.close(descriptor)


def connections(listener: socket.socket) -> int:
    """Count who has connected."""
    listener.settimeout(0)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


@pytest.mark.parametrize("form", ["path", "file URL", "http URL", "path within a folder"])
def test_no_text_of_a_request_is_opened(form: str, victim: Server, tmp_path: Path) -> None:
    """Wherever it stands, in arguments of the pipeline too: no process opens or connects to it."""
    [folder] = {Path(each) for each in adapter_folders(victim)}
    canary = folder.parent / "canary.safetensors"
    canary.write_bytes(b"x" * 100)
    with socket.create_server(("127.0.0.1", 0)) as listener, opened(canary) as events:
        port = listener.getsockname()[1]
        text = {
            "path": str(canary),
            "file URL": f"file://{canary}",
            "http URL": f"http://127.0.0.1:{port}/canary.png",
            "path within a folder": f"{folder.name}/../{canary.name}",
        }[form]
        send_all(victim, text)
        assert connections(listener) == 0
    assert events == []


def test_that_a_file_is_opened_would_be_seen(tmp_path: Path) -> None:
    """The test above can fail."""
    canary = tmp_path / "canary"
    canary.write_bytes(b"x")
    with opened(canary) as events:
        canary.read_bytes()
    assert events != []


def send_all(victim: Server, text: str) -> None:
    """Send all requests with a text; none may end as none may."""
    caller = Caller(victim.addresses[1])
    sent = list(requests(text))
    assert len(sent) > 50
    for begin in range(0, len(sent), BURST):
        verdicts = caller.burst(sent[begin : begin + BURST])
        assert [each.fault for each in verdicts if each.fault] == []
    caller.close()


def adapter_folders(victim: Server) -> Iterator[str]:
    """Give the folders that the server was told to load adapters from."""
    arguments = list(map(str, victim.process.args))  # type: ignore[arg-type]
    for flag, value in itertools.pairwise(arguments):
        if flag == "--adapter-folder":
            yield value


def test_nothing_is_unpickled_and_all_that_is_sent_is_a_known_message(
    victim: Server, watched: Path
) -> None:
    """In the service and its rank, since they began: frames of two closed unions, and no pickle."""
    send_all(victim, "x")
    assert [path.read_text() for path in watched.glob("*.unpickled")] == []
    kinds: set[str] = set()
    deadline = time.monotonic() + ALIVE_SECONDS
    # A rank says that it is alive after a second without a command.
    while "Alive" not in kinds and time.monotonic() < deadline:
        time.sleep(0.2)
        kinds = kinds_sent(victim, watched)
    assert {"Launch", "Run", "Ready", "Alive", "Step", "Output", "Ended"} <= kinds


def kinds_sent(victim: Server, watched: Path) -> set[str]:
    """Name the kinds of all messages between the service and its rank up to now."""
    kinds = set()
    for union, process in ((Command, victim.process.pid), (Report, victim.ranks()[0].pid)):
        decoder: Any = msgspec.msgpack.Decoder(union)
        for path in watched.glob(f"{process}-*.sent"):
            data = path.read_bytes()
            if not data.strip(b"\0"):
                continue  # An event loop wakes itself.
            payloads = FrameBuffer().feed(data)
            assert payloads
            kinds |= {type(unpack(decoder, payload)).__name__ for payload in payloads}
    return kinds
