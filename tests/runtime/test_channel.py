"""Commands and descriptors reach a rank together, in order, however slowly the socket drains."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from tests.runtime.making import submission

from ditcast_runtime.channel import ChannelClosed, RankChannel, Received, ServiceChannel
from ditcast_runtime.messages import Cancel, Command, Picture, Run
from ditcast_runtime.pictures import Pictures, Pixels, read

LARGE = 2**20
"""Bytes of a prompt that no socket takes at once."""


def run(number: int, *, pictures: bool) -> Run:
    """Make a command, large enough to be sent in parts."""
    picture = Picture(parameter="image", width=2, height=1, mode="RGB")
    return Run(
        epoch=1,
        number=number,
        request_id="x" * LARGE,
        parameters=submission().parameters,
        pictures=(picture,) if pictures else (),
    )


async def test_each_run_gets_its_own_pictures() -> None:
    """Descriptors are paired with what brought them, with other commands between them."""
    ours, theirs = socket.socketpair()
    service = ServiceChannel(ours, lambda *_: None, lambda _: None)
    rank = RankChannel(theirs)
    held = [Pictures([Pixels(2, 1, "RGB", bytes([number] * 6))]) for number in (1, 2)]
    sent: list[Command] = [run(1, pictures=True), run(2, pictures=False), Cancel(epoch=1, number=2)]
    sent.append(run(3, pictures=True))
    for command, pictures in zip(sent, (held[0], None, None, held[1]), strict=True):
        service.send(command, None if pictures is None else pictures.descriptor)
    for pictures in held:
        # The channel has its own: what is sent later must not hang on the sender.
        pictures.close()
    received = [await asyncio.to_thread(rank.receive, 10.0) for _ in sent]
    assert [each and each.command for each in received] == sent
    descriptors = [each.descriptor for each in received if isinstance(each, Received)]
    assert [descriptor is not None for descriptor in descriptors] == [True, False, False, True]
    contents = [bytes(read(each, 6)) for each in descriptors if each is not None]
    assert contents == [b"\1" * 6, b"\2" * 6]
    service.close()
    theirs.close()


async def test_what_was_never_sent_is_closed() -> None:
    """A rank that takes nothing leaves no descriptors behind in the service."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a count)
    ours, theirs = socket.socketpair()
    service = ServiceChannel(ours, lambda *_: None, lambda _: None)
    pictures = Pictures([Pixels(2, 1, "RGB", bytes(6))])
    for number in range(4):
        service.send(run(number, pictures=True), pictures.descriptor)
    pictures.close()
    service.close()
    theirs.close()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 (a count)


NO_MESSAGES = {
    "nothing": b"",
    "another kind": b"\x81\xa4type\xa4None",
    "text that is no UTF-8": b"\x82\xa4type\xa3\xff\xff\xff\xa5epoch\x01",
    "what is nested too deeply": b"\x83\xa4type\xa5Alive\xa5epoch\x01\xa1x" + b"\x91" * 5_000,
    "a pickle": b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
}


@pytest.mark.parametrize("payload", NO_MESSAGES.values(), ids=NO_MESSAGES)
async def test_what_is_no_message_ends_the_channel_on_either_side(payload: bytes) -> None:
    """Left open, the service would wait for a rank, and a rank for a service, that says nothing."""
    frame = len(payload).to_bytes(4, "big") + payload
    closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ours, theirs = socket.socketpair()
    ServiceChannel(ours, lambda *_: None, closed.set_result)
    theirs.sendall(frame)
    assert "no message" in await closed
    theirs.close()
    ours, theirs = socket.socketpair()
    ours.sendall(frame)
    with pytest.raises(ChannelClosed, match="no message"):
        RankChannel(theirs).receive(10.0)
    ours.close()
    theirs.close()
