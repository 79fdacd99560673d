"""Ctrl-C at a running generation: cancel it explicitly and wait for its end, or leave it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Final

from ditcast_client.errors import DitcastError
from ditcast_client.generation import Generation

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def cancelling_on_interrupt(generation: Generation) -> AbstractContextManager[None]:
    """Turn the first SIGINT or SIGTERM into a cancel; a second one has its usual effect.

    The generation then ends for its watcher with Cancelled, and the steps that were done.
    """
    return _on_interrupt(lambda: _cancel(generation))


def leaving_on_interrupt(generation: Generation) -> AbstractContextManager[None]:
    """Turn the first SIGINT or SIGTERM into leaving a generation that goes on without us.

    Its watcher sees Cancelled with the reason LEFT_EARLY.
    """
    return _on_interrupt(generation.close)


@contextmanager
def _on_interrupt(act: Callable[[], Coroutine[object, object, None]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    tasks: list[asyncio.Task[None]] = []

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def begin() -> None:
        tasks.append(loop.create_task(act()))

    def interrupted(number: int, frame: FrameType | None) -> None:
        del number, frame
        restore()
        loop.call_soon_threadsafe(begin)

    for number in _SIGNALS:
        signal.signal(number, interrupted)
    try:
        yield
    finally:
        restore()


async def _cancel(generation: Generation) -> None:
    try:
        await generation.cancel()
    except DitcastError:
        # The server does not know it yet, or cannot be reached: then the stream must go.
        await generation.close()
