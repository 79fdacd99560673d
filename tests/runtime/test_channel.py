"""Commands and descriptors reach a rank together, in order, however slowly the socket drains."""

from __future__ import annotations

import asyncio
import os
import socket

from tests.runtime.making import submission

from ditcast_runtime.channel import RankChannel, Received, ServiceChannel
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
