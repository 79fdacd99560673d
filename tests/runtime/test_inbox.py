"""What a rank hears while it is busy: commands, and cancels of what runs or was sent ahead."""

from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from tests.runtime.fake_ranks import PARAMETERS

from ditcast_runtime.channel import RankChannel, pack
from ditcast_runtime.messages import Cancel, Command, Run, Shutdown
from ditcast_runtime.rank import Inbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ditcast_runtime.launches import Launch

EPOCH = 1


@pytest.fixture
def inbox() -> Iterator[tuple[Inbox, socket.socket]]:
    """An inbox, and the service's end of its channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    inbox = Inbox(RankChannel(theirs), cast("Launch", SimpleNamespace(epoch=EPOCH, rank=0)))
    [thread] = [each for each in threading.enumerate() if each.name == "inbox"]
    yield inbox, ours
    # Else it would end the process: nobody is left to report to.
    inbox.leave()
    ours.close()
    thread.join(10)
    theirs.close()


def say(service: socket.socket, *commands: Command) -> None:
    """Send commands as the service does."""
    for command in commands:
        service.sendall(pack(command))


def soon(holds: Callable[[], bool]) -> bool:
    """Wait until something holds; give whether it came to that."""
    until = time.monotonic() + 10
    while not holds() and time.monotonic() < until:
        time.sleep(0.001)
    return holds()


def cancel(number: int, index: int = 0) -> Cancel:
    """Make a cancel of one of a batch."""
    return Cancel(epoch=EPOCH, number=number, index=index)


def test_cancels_of_two_do_not_displace_each_other(inbox: tuple[Inbox, socket.socket]) -> None:
    """One of the batch that runs has left, then what was sent ahead, then another of the batch."""
    heard, service = inbox
    say(service, cancel(1), cancel(2), cancel(1, 1))
    assert soon(lambda: heard.cancelled(1) == {0, 1})
    assert heard.cancelled(2) == {0}
    assert heard.cancelled(3) == set()


def test_cancels_of_what_is_over_are_forgotten(inbox: tuple[Inbox, socket.socket]) -> None:
    """However many are cancelled, two are known."""
    heard, service = inbox
    say(service, *map(cancel, range(1, 100)))
    assert soon(lambda: heard.cancelled(99) == {0})
    assert [number for number in range(1, 100) if heard.cancelled(number)] == [98, 99]


def test_a_command_is_there_at_once_or_not(inbox: tuple[Inbox, socket.socket]) -> None:
    """Nothing waits for what was not sent yet, and nothing is lost or out of order."""
    heard, service = inbox
    assert heard.next_at_once() is None
    run = Run(epoch=EPOCH, number=1, request_id="g", parameters=PARAMETERS)
    say(service, run, Shutdown(epoch=EPOCH))
    assert heard.next() == (run, None)
    assert soon(lambda: not heard._commands.empty())
    assert heard.next_at_once() == (Shutdown(epoch=EPOCH), None)
