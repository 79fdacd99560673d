"""The ranks' control group: rank 0 sends one command, the others receive it; and the votes.

A gloo group of its own, so that neither can ever be paired with a collective of the pipeline. Both
are made by the thread that runs the pipeline and by no other. In a world of one rank nothing
travels, but the command is still the decoded copy, so that there is one way for the data to go.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from ditcast_runtime.messages import Broadcast

_WITHIN_ONE_BROADCAST = 16 * 2**10
"""Bytes that the first broadcast carries: enough for nearly every command to need no second."""

_HEADER = 8

_IDLE_TIMEOUT = timedelta(days=365)
"""An idle rank waits in a broadcast for its next command; the service ends a stuck one."""


class Ballot(enum.IntEnum):
    """What a rank says at a boundary; the largest of all ranks is the verdict."""

    GO_ON = 0
    CANCEL = 1
    FAILED = 2


class ControlLost(BaseException):
    """Another rank is gone in the middle of a broadcast or a vote: this one has to leave too.

    Not an `Exception`, so that nothing between the vote and the rank's entry point can take it for
    a failure of the pipeline and vote on it.
    """


@dataclass(frozen=True, slots=True)
class _Begun:
    """A broadcast that is under way."""

    payload: bytes
    """The whole message, on rank 0."""
    first: torch.Tensor
    """Its size and its beginning; bytes."""
    work: Any


class ControlGroup:
    """Broadcasts and votes of one rank."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._group: Any = None
        if world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=_IDLE_TIMEOUT)
        self._decoder: msgspec.msgpack.Decoder[Broadcast] = msgspec.msgpack.Decoder(Broadcast)
        self._begun: _Begun | None = None
        self._ballot = torch.zeros(1, dtype=torch.int64)

    @property
    def begun(self) -> bool:
        """Whether a broadcast has begun and is not finished."""
        return self._begun is not None

    def begin(self, message: Broadcast | None) -> None:
        """Begin to give rank 0's `message` (None on the others) to all ranks; `finish` has it."""
        payload = msgspec.msgpack.encode(message) if self.rank == 0 else b""
        first = torch.zeros(_HEADER + _WITHIN_ONE_BROADCAST, dtype=torch.uint8)
        work = None
        if self._group is not None:
            head = len(payload).to_bytes(_HEADER, "big") + payload[:_WITHIN_ONE_BROADCAST]
            first[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
            try:
                work = dist.broadcast(first, src=0, group=self._group, async_op=True)
            except RuntimeError as error:
                raise ControlLost(str(error)) from error
        self._begun = _Begun(payload, first, work)

    def finish(self) -> Broadcast:
        """Wait for what began; give the same bytes, decoded, on all ranks."""
        begun, self._begun = self._begun, None
        if begun is None:
            raise ValueError("no broadcast has begun")
        payload = begun.payload
        if self._group is not None:
            try:
                payload = self._receive(begun)
            except RuntimeError as error:
                raise ControlLost(str(error)) from error
        return self._decoder.decode(payload)

    def _receive(self, begun: _Begun) -> bytes:
        begun.work.wait()
        payload, head = begun.payload, begun.first.numpy().tobytes()
        size = int.from_bytes(head[:_HEADER], "big")
        if size <= _WITHIN_ONE_BROADCAST:
            return head[_HEADER : _HEADER + size]
        rest = torch.zeros(size - _WITHIN_ONE_BROADCAST, dtype=torch.uint8)
        if self.rank == 0:
            tail = bytearray(payload[_WITHIN_ONE_BROADCAST:])
            rest = torch.frombuffer(tail, dtype=torch.uint8)
        dist.broadcast(rest, src=0, group=self._group)
        return head[_HEADER:] + rest.numpy().tobytes()

    def share(self, data: bytearray | None, size: int) -> bytearray:
        """Give rank 0's `data` of `size` bytes (None on the others) to all ranks."""
        shared = bytearray(size) if data is None else data
        if self._group is not None:
            try:
                dist.broadcast(torch.frombuffer(shared, dtype=torch.uint8), 0, group=self._group)
            except RuntimeError as error:
                raise ControlLost(str(error)) from error
        return shared

    def vote(self, ballot: Ballot) -> Ballot:
        """Give every rank the largest ballot of all; blocks until all ranks have voted."""
        if self._group is None:
            return ballot
        self._ballot[0] = ballot
        try:
            dist.all_reduce(self._ballot, op=dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            raise ControlLost(str(error)) from error
        return Ballot(int(self._ballot[0]))
