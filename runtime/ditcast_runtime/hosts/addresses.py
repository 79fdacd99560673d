"""Addresses at which ranks attach: `HOST:PORT`, or `unix:/path` for those on the service's host."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

UNIX = "unix:"

_BACKLOG = 128
_PROBES = 3
_PROBE_SECONDS = 5


def is_unix(address: str) -> bool:
    """Say whether an address is a socket of this host."""
    return address.startswith(UNIX)


def host_and_port(address: str) -> tuple[str, int]:
    """Take `HOST:PORT` apart; IPv6 addresses stand in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def listen(address: str) -> socket.socket:
    """Listen at an address; OSError if that cannot be."""
    if is_unix(address):
        return _listen_unix(address.removeprefix(UNIX))
    host, port = host_and_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.settimeout(0)
    return listener


def _listen_unix(path: str) -> socket.socket:
    if Path(path).exists():
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
            probe.connect(path)
            raise OSError("a server answers on this socket")
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX)
    # Nobody but the user that the service runs as may so much as knock.
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    listener.settimeout(0)
    return listener


def connect(address: str, limit: float) -> socket.socket:
    """Connect to an address within `limit` seconds, which stay the socket's limit; or OSError."""
    if not is_unix(address):
        return socket.create_connection(host_and_port(address), limit)
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(limit)
    try:
        end.connect(address.removeprefix(UNIX))
    except OSError:
        end.close()
        raise
    return end


def notice_silence(end: socket.socket, seconds: float) -> None:
    """Have the kernel end a TCP connection whose other side does not answer for so long.

    Without it, a cut link is noticed after a quarter of an hour where something was sent, and never
    where nothing was.
    """
    if end.family == socket.AF_UNIX:
        return
    tcp = socket.IPPROTO_TCP
    end.setsockopt(tcp, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(tcp, socket.TCP_KEEPIDLE, _PROBE_SECONDS)
    end.setsockopt(tcp, socket.TCP_KEEPINTVL, _PROBE_SECONDS)
    end.setsockopt(tcp, socket.TCP_KEEPCNT, _PROBES)
    end.setsockopt(tcp, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
