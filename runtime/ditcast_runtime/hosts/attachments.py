"""The control address: takes in ranks that others start, once they have shown the group's secret.

It outlives the groups. Ranks that are taken in wait here until all are there, and go to the group
that gathers them; while a group runs, everybody is refused and may come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from ditcast_runtime.errors import ConfigError
from ditcast_runtime.hosts import addresses, handshake, relay
from ditcast_runtime.hosts.handshake import Challenge, HandshakeFailed, Hello, Proof, Secret
from ditcast_runtime.settings import Problem

log = structlog.get_logger()

F = TypeVar("F", Hello, Proof)

MAX_HALF_OPEN = 16
"""Connections that may be in their handshake; one more, and the oldest is closed."""

_OUT_OF_DESCRIPTORS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Recruit:
    """A rank that has shown that it belongs here, and waits for the others."""

    hello: Hello
    end: socket.socket
    peer: str
    """The address that it came from; empty: this host, where descriptors can be passed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Who may attach, and how long things may take in seconds."""

    secret: Secret
    world_size: int
    handshake_timeout: float
    """A whole handshake, TLS too."""
    attach_notice: float
    """After so long, and again, the log says who is missing."""
    alive_timeout: float
    """After so long without an answer a connection is over."""


class Attachments:
    """Listens for ranks; construct it by `listen`, inside the running loop."""

    def __init__(
        self,
        listeners: Iterable[socket.socket],
        terms: Terms,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.instance = secrets.token_hex(8)
        """This service among all that ever used the ranks' store."""
        self._listeners = tuple(listeners)
        self._terms = terms
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._epoch = 0
        self._gathering = False
        self._waiting: dict[int, Recruit] = {}
        self._changed = asyncio.Event()
        self._half_open: dict[asyncio.Task[bool], None] = {}
        """Those in their handshake, the oldest first."""
        self._tasks: set[asyncio.Task[None]] = set()
        for listener in self._listeners:
            self._keep(self._accept(listener))

    @classmethod
    def listen(cls, where: Iterable[str], terms: Terms, tls: ssl.SSLContext | None) -> Attachments:
        """Listen at all addresses, those of TCP with TLS where it is given.

        Raises:
            ConfigError: one problem for each address that cannot be listened on.
        """
        listeners: list[socket.socket] = []
        problems: list[Problem] = []
        # Sockets of this host first: a rank that finds none there would attach by TCP.
        for address in sorted(where, key=addresses.is_unix, reverse=True):
            try:
                listeners.append(addresses.listen(address))
            except OSError as error:
                reason = f"cannot listen on {address}: {error}. Is another server running there?"
                problems.append(Problem("control_listen", reason))
        if problems:
            for listener in listeners:
                listener.close()
            raise ConfigError(tuple(problems))
        return cls(listeners, terms, tls)

    @property
    def ports(self) -> tuple[int, ...]:
        """Give the ports listened on, so that port 0 is known."""
        return tuple(
            listener.getsockname()[1]
            for listener in self._listeners
            if listener.family != socket.AF_UNIX
        )

    def close(self) -> None:
        """Listen no more, and let go of whoever waits."""
        for task in (*self._tasks, *self._half_open):
            task.cancel()
        for listener in self._listeners:
            if listener.family == socket.AF_UNIX:
                Path(listener.getsockname()).unlink(missing_ok=True)
            listener.close()
        self._dismiss()

    async def gather(self, epoch: int) -> list[Recruit]:
        """Wait until all ranks have attached; give them in the group's order.

        Ranks of this host come first, as rank 0 has to be one of them; else they stay in the order
        in which they were started, so that those of a host stand together.
        """
        self._epoch, self._gathering = epoch, True
        try:
            while missing := self._missing():
                self._changed.clear()
                try:
                    async with asyncio.timeout(self._terms.attach_notice):
                        await self._changed.wait()
                except TimeoutError:
                    log.warning("waiting for ranks to attach", epoch=epoch, missing=missing)
            for recruit in self._waiting.values():
                self._loop.remove_reader(recruit.end)
            found = [*self._waiting.values()]
            self._waiting.clear()
            return sorted(found, key=lambda recruit: (bool(recruit.peer), recruit.hello.rank))
        finally:
            self._gathering = False
            self._dismiss()

    def _missing(self) -> str:
        ranks = [rank for rank in range(self._terms.world_size) if rank not in self._waiting]
        if ranks:
            return f"ranks {', '.join(map(str, ranks))}"
        local = any(not recruit.peer for recruit in self._waiting.values())
        return "" if local else "any rank by the Unix socket: rank 0 can only be one of this host"

    def _dismiss(self) -> None:
        for recruit in self._waiting.values():
            self._loop.remove_reader(recruit.end)
            recruit.end.close()
        self._waiting.clear()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                end, _ = await self._loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely: others may be given back.
                log.warning("cannot accept a rank", error=str(error))
                await asyncio.sleep(_OUT_OF_DESCRIPTORS_SECONDS)
                continue
            if len(self._half_open) >= MAX_HALF_OPEN:
                # An honest rank is through in no time: it is never the oldest for long.
                oldest = next(iter(self._half_open))
                del self._half_open[oldest]
                oldest.cancel()
            task = asyncio.create_task(self._receive(end))
            self._half_open[task] = None
            task.add_done_callback(partial(self._received, end))
            # Where the next one waits already, accepting it lets nobody else have a turn.
            await asyncio.sleep(0)

    def _received(self, end: socket.socket, task: asyncio.Task[bool]) -> None:
        self._half_open.pop(task, None)
        # Here, as a task that is cancelled before its first turn closes nothing itself.
        if task.cancelled() or not task.result():
            end.close()

    async def _receive(self, end: socket.socket) -> bool:
        """Take a rank in within the time limit; say whether it was."""
        peer = _peer(end)
        plain = end
        try:
            async with asyncio.timeout(self._terms.handshake_timeout):
                addresses.notice_silence(end, self._terms.alive_timeout)
                if self._tls is not None and peer:
                    plain = await self._decrypted(end, self._tls)
                await self._shake_hands(plain, peer)
        except (OSError, HandshakeFailed) as error:
            plain.close()
            reason = "it took too long" if isinstance(error, TimeoutError) else str(error)
            log.warning("nobody was attached", peer=peer or "this host", reason=reason)
            return False
        except asyncio.CancelledError:
            plain.close()
            raise
        return True

    async def _decrypted(self, end: socket.socket, context: ssl.SSLContext) -> socket.socket:
        stream = await relay.accept(end, context)
        plain, inner = socket.socketpair()
        self._keep(relay.relay(stream, inner))
        plain.settimeout(0)
        return plain

    async def _shake_hands(self, end: socket.socket, peer: str) -> None:
        hello = await self._next(end, Hello)
        challenge = Challenge(
            epoch=self._epoch, alive_timeout=self._terms.alive_timeout, nonce=handshake.nonce()
        )
        await self._loop.sock_sendall(end, handshake.pack(challenge))
        proof = await self._next(end, Proof)
        secret = self._terms.secret
        handshake.agree(proof.mac, secret.proof(hello, challenge), "it does not know the secret")
        reason = self._reason_against(hello, challenge)
        if reason:
            await self._loop.sock_sendall(end, handshake.pack(handshake.refusal(reason)))
            raise HandshakeFailed(f"rank {hello.rank}: {reason}")
        welcome = handshake.Welcome(mac=secret.counterproof(hello, challenge))
        # In one go, and no waiting between the check and the taking: two may claim one rank.
        end.send(handshake.pack(welcome))
        self._take(Recruit(hello, end, peer))

    async def _next(self, end: socket.socket, kind: type[F]) -> F:
        size = handshake.payload_size(await self._exactly(end, handshake.LENGTH.size))
        frame = handshake.unpack(await self._exactly(end, size))
        if not isinstance(frame, kind):
            raise HandshakeFailed(f"{type(frame).__name__} came where {kind.__name__} should")
        return frame

    async def _exactly(self, end: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self._loop.sock_recv(end, size - len(data))
            if not more:
                raise HandshakeFailed("it left")
            data += more
        return data

    def _reason_against(self, hello: Hello, challenge: Challenge) -> str:
        world_size = self._terms.world_size
        if hello.release != handshake.RELEASE:
            return f"it is ditcast {hello.release}, and the service {handshake.RELEASE}"
        if hello.world_size != world_size or hello.rank >= world_size:
            return f"it is one of {hello.world_size} ranks, and the group has {world_size}"
        if not self._gathering or challenge.epoch != self._epoch:
            return "the group is complete"
        if hello.rank in self._waiting:
            return "another process is this rank already"
        return ""

    def _take(self, recruit: Recruit) -> None:
        rank = recruit.hello.rank
        self._waiting[rank] = recruit
        # It says nothing before it is told what to load: what can be read is its end.
        self._loop.add_reader(recruit.end, self._leaves, rank)
        self._changed.set()
        log.info(
            "a rank attached",
            epoch=self._epoch,
            rank=rank,
            peer=recruit.peer or "this host",
            process_id=recruit.hello.process_id,
        )

    def _leaves(self, rank: int) -> None:
        recruit = self._waiting.pop(rank)
        self._loop.remove_reader(recruit.end)
        recruit.end.close()
        self._changed.set()
        log.warning("a rank left before the others were there", rank=rank)

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _peer(end: socket.socket) -> str:
    if end.family == socket.AF_UNIX:
        return ""
    with contextlib.suppress(OSError):
        host, port, *_ = end.getpeername()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "unknown"
