"""Watches a server under test: what unpicklers look up, and what its own sockets carry.

Python imports this file by itself at the start of each process whose path has this folder. Each
writes into WATCH_FOLDER: `PID.unpickled`, a line for each class or function that a pickle names;
`PID-DESCRIPTOR.sent`, the bytes that were sent over a Unix socket.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FOLDER = Path(os.environ["WATCH_FOLDER"])
_send, _sendall, _sendmsg = socket.socket.send, socket.socket.sendall, socket.socket.sendmsg


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class":
        with (_FOLDER / f"{os.getpid()}.unpickled").open("a") as file:
            file.write(f"{arguments[0]}.{arguments[1]}\n")


def _note(end: socket.socket, data: bytes) -> None:
    if end.family == socket.AF_UNIX:
        with (_FOLDER / f"{os.getpid()}-{end.fileno()}.sent").open("ab") as file:
            file.write(data)


def send(self: socket.socket, data: Any, *rest: Any) -> int:
    """Send, and note what was taken."""
    taken = _send(self, data, *rest)
    _note(self, bytes(data)[:taken])
    return taken


def sendall(self: socket.socket, data: Any, *rest: Any) -> None:
    """Send all, and note it."""
    _sendall(self, data, *rest)
    _note(self, bytes(data))


def sendmsg(self: socket.socket, buffers: Iterable[Any], *rest: Any) -> int:
    """Send with descriptors, and note what was taken of the bytes."""
    parts = [bytes(each) for each in buffers]
    taken = _sendmsg(self, parts, *rest)
    _note(self, b"".join(parts)[:taken])
    return taken


sys.addaudithook(_watch)
socket.socket.send = send  # type: ignore[method-assign,assignment]
socket.socket.sendall = sendall  # type: ignore[method-assign,assignment]
socket.socket.sendmsg = sendmsg  # type: ignore[method-assign,assignment]
