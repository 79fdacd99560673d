"""The entry point of a rank that others start: `python -m ditcast_runtime.attach`, under torchrun.

It finds the service, shows that it knows the group's secret, and then is a rank like any other. A
group that is lost ends it with a code other than 0, whereupon its starter starts it again.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from ditcast_runtime import logs
from ditcast_runtime.channel import ChannelClosed, RankChannel
from ditcast_runtime.environment import die_with_the_parent, rank_environment, uncollected_imports
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.hosts import addresses, handshake
from ditcast_runtime.hosts.handshake import (
    Challenge,
    HandshakeFailed,
    Hello,
    Proof,
    Refused,
    Secret,
    Welcome,
)
from ditcast_runtime.hosts.place import Place
from ditcast_runtime.hosts.relay import Tunnel
from ditcast_runtime.launches import Launch, TorchrunStore

log = structlog.get_logger()

F = TypeVar("F")

NOT_ATTACHED = 1
MISUSED = 2
CHANNEL_CLOSED = 5

_TRY_SECONDS = 10.0
"""Longest time that one attempt takes."""
_PAUSE_SECONDS = 1.0
_LAST_WORDS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Attached:
    """A rank whose service has taken it in."""

    end: socket.socket
    epoch: int
    tunnel: Tunnel | None
    """What TLS goes through, if there is any."""

    def close(self) -> None:
        """Let what was said last go out."""
        if self.tunnel is not None:
            self.tunnel.close(_LAST_WORDS_SECONDS)


class Applicant:
    """A rank that looks for its service."""

    def __init__(
        self, where: Sequence[str], secret: Secret, place: Place, tls: ssl.SSLContext | None
    ) -> None:
        self._where = where
        self._secret = secret
        self._place = place
        self._tls = tls

    def attach(self, limit: float) -> Attached:
        """Try again and again for `limit` seconds: the service may start later, or be busy.

        Raises:
            OSError, HandshakeFailed: the last attempt's reason.
        """
        until = time.monotonic() + limit
        said = ""
        while True:
            address = self._address()
            try:
                return self._try(address)
            except (OSError, HandshakeFailed) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("not attached", address=address, reason=said)
                if time.monotonic() > until:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def _address(self) -> str:
        """Give the Unix socket where there is one: on the service's host, where rank 0 has to be.

        One command line then does for all hosts.
        """
        own = [each for each in self._where if addresses.is_unix(each)]
        found = [each for each in own if Path(each.removeprefix(addresses.UNIX)).exists()]
        others = [each for each in self._where if each not in own]
        return (found or others or own)[0]

    def _try(self, address: str) -> Attached:
        end = addresses.connect(address, _TRY_SECONDS)
        tunnel = None
        try:
            if self._tls is not None and not addresses.is_unix(address):
                host, _ = addresses.host_and_port(address)
                tunnel = Tunnel(end, self._tls, host, _TRY_SECONDS)
            plain = end if tunnel is None else tunnel.end
            plain.settimeout(_TRY_SECONDS)
            challenge = self._shake_hands(plain)
            addresses.notice_silence(end, challenge.alive_timeout)
            plain.settimeout(None)
        except BaseException:  # raised on: nobody else knows of these ends
            end.close()
            if tunnel is not None:
                tunnel.end.close()
            raise
        return Attached(plain, challenge.epoch, tunnel)

    def _shake_hands(self, end: socket.socket) -> Challenge:
        hello = Hello(
            release=handshake.RELEASE,
            rank=self._place.rank,
            world_size=self._place.world_size,
            process_id=os.getpid(),
            nonce=handshake.nonce(),
        )
        end.sendall(handshake.pack(hello))
        challenge = _next(end, Challenge)
        end.sendall(handshake.pack(Proof(mac=self._secret.proof(hello, challenge))))
        welcome = _next(end, Welcome)
        expected = self._secret.counterproof(hello, challenge)
        handshake.agree(welcome.mac, expected, "this is not the service: it has another secret")
        return challenge


def _next(end: socket.socket, kind: type[F]) -> F:
    size = handshake.payload_size(_exactly(end, handshake.LENGTH.size))
    frame = handshake.unpack(_exactly(end, size))
    if isinstance(frame, Refused):
        raise HandshakeFailed(frame.reason)
    if not isinstance(frame, kind):
        raise HandshakeFailed(f"{type(frame).__name__} came where {kind.__name__} should")
    return frame


def _exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        if not more:
            # It tells strangers nothing, and whoever has another secret is one.
            raise HandshakeFailed("the service closed the connection: is the secret the same?")
        data += more
    return data


def receive_launch(attached: Attached, place: Place, threads: int) -> tuple[RankChannel, Launch]:
    """Wait until all ranks are there, and give what to load, with what only this rank knows.

    Raises:
        ChannelClosed: the service is gone, or speaks of another epoch.
    """
    channel = RankChannel(attached.end)
    first = channel.receive(None)
    launch = first.command if first else None
    if not isinstance(launch, Launch) or launch.epoch != attached.epoch:
        raise ChannelClosed("the service sent no launch of this epoch")
    if isinstance(launch.store, TorchrunStore):
        store = TorchrunStore(
            prefix=launch.store.prefix,
            address=place.master_address,
            port=place.master_port,
            hosts_it=place.hosts_store,
        )
        launch = msgspec.structs.replace(
            launch, store=store, local_rank=place.local_rank, threads=threads
        )
    return channel, launch


def main(arguments: Sequence[str]) -> int:
    """Attach and be a rank; give the exit code."""
    given = _parser().parse_args(arguments)
    die_with_the_parent()
    logs.configure(json_logs=not sys.stderr.isatty(), level="info")
    try:
        place = Place.read(os.environ)
        secret = Secret.read(given.secret_file, "--secret-file")
        tls = ssl.create_default_context(cafile=given.tls_ca) if given.tls_ca else None
    except (ConfigError, OSError) as error:
        print(f"this rank cannot attach:\n{error}", file=sys.stderr)  # noqa: T201
        return MISUSED
    threads = max(1, len(os.sched_getaffinity(0)) // place.local_world_size)
    os.environ.update(rank_environment(os.environ, threads, given.interface))
    structlog.contextvars.bind_contextvars(rank=place.rank)
    applicant = Applicant(given.service, secret, place, tls)
    try:
        attached = applicant.attach(given.attach_timeout)
    except (OSError, HandshakeFailed) as error:
        log.error("giving up", reason=str(error))  # noqa: TRY400 - the reason says it all
        return NOT_ATTACHED
    # Only now: torch reads the environment when it is loaded, which takes while others attach.
    with uncollected_imports():
        from ditcast_runtime import rank  # noqa: PLC0415

    try:
        channel, launch = receive_launch(attached, place, threads)
    except (ChannelClosed, OSError, msgspec.MsgspecError) as error:
        log.warning("the service let go", reason=str(error))
        return CHANNEL_CLOSED
    code = rank.live(channel, launch)
    attached.close()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ditcast_runtime.attach",
        description="Be one of a group's ranks: start it by torchrun, once for each rank.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--service",
        action="append",
        required=True,
        metavar="ADDRESS",
        help="where the service takes ranks, as in its --control-listen; by repeating the flag the "
        "unix: socket, which counts where it exists, and HOST:PORT for the other hosts",
    )
    parser.add_argument(
        "--secret-file", type=Path, required=True, metavar="FILE", help="the group's secret"
    )
    parser.add_argument(
        "--tls-ca", metavar="FILE", help="certificates that sign the service's, PEM: use TLS"
    )
    parser.add_argument(
        "--interface",
        default="",
        metavar="NAME",
        help="network interface for gloo and NCCL (sets GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)",
    )
    parser.add_argument(
        "--attach-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long to try to attach (default: 600)",
    )
    return parser


if __name__ == "__main__":
    # As in `rank`: gloo's threads may wait for ranks that are gone.
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)
