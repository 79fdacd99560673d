"""Notes when rank 0 and the service pass from one generation to the next, for `benchmarks.overlap`.

Python imports this file by itself at the start of each process whose path has this folder. A note
is a line of the file OVERLAP_NOTES: what happened, the number of the generation, and the monotonic
clock, which all processes of a machine share. Nothing of this is in what is served otherwise.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class _Notes:
    """The file, opened for appending by whoever writes first."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def add(self, what: str, number: int) -> None:
        """Write one line, whole even where two processes write."""
        moment = time.monotonic()
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._descriptor = os.open(os.environ["OVERLAP_NOTES"], flags, 0o600)
        os.write(self._descriptor, f"{what} {number} {moment!r}\n".encode())


_notes = _Notes()
_current = 0


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put `around(original, *arguments)` in a method's place."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        return around(original, *arguments, **options)

    setattr(owner, name, wrapped)


def _begin(original: Callable[..., Any], execution: Any, *arguments: Any) -> None:
    global _current  # noqa: PLW0603 - one generation runs at a time
    command, control = arguments[0], arguments[3]
    _current = command.number if control.rank == 0 else 0
    if _current:
        _notes.add("begun", _current)
    original(execution, *arguments)


def _run(original: Callable[..., Any], execution: Any) -> None:
    original(execution)
    if _current:
        _notes.add("ran", _current)


def _ended(original: Callable[..., Any], *arguments: Any) -> Any:
    report = original(*arguments)
    if _current:
        _notes.add("telling", _current)
    return report


def _clean_up(original: Callable[..., Any], *arguments: Any) -> None:
    if _current:
        _notes.add("cleaning", _current)
    original(*arguments)
    if _current:
        _notes.add("clean", _current)


def _finish(
    original: Callable[..., Any], runner: Any, group: Any, facts: Any, running: Any, *rest: Any
) -> Any:
    _notes.add("heard", running[0].generation.number)
    return original(runner, group, facts, running, *rest)


def _send(original: Callable[..., Any], channel: Any, command: Any, *rest: Any) -> None:
    original(channel, command, *rest)
    if type(command).__name__ == "Run":
        _notes.add("sent", command.number)


def _watch_rank() -> None:
    execution: Any = importlib.import_module("ditcast_runtime.execution")
    _wrap(execution.Execution, "__init__", _begin)
    _wrap(execution.Execution, "run", _run)
    _wrap(execution.Execution, "ended", _ended)
    _wrap(execution.Pipeline, "clean_up", _clean_up)


def _watch_service() -> None:
    runner: Any = importlib.import_module("ditcast_runtime.runner")
    channel: Any = importlib.import_module("ditcast_runtime.channel")
    _wrap(runner.Runner, "_finish", _finish)
    _wrap(channel.ServiceChannel, "send", _send)


_WATCHED = {"ditcast_runtime.rank": _watch_rank, "ditcast_runtime.engine": _watch_service}


class _AtImport:
    """Begins to watch when the code that is watched is imported."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Find nothing: the import goes on as ever."""
        if name in _WATCHED:
            sys.meta_path.remove(self)
            _WATCHED[name]()


sys.meta_path.insert(0, _AtImport())
