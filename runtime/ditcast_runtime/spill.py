"""A file for what one log no longer holds in memory.

It has no name in the folder, so nothing of it is left whatever happens to the process, and its
space is free once the last log or reader that holds it lets go.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path


class SpillFile:
    """Bytes on disk; written once, then read piece by piece, from any thread."""

    def __init__(self, folder: Path, pieces: Iterable[bytes | memoryview]) -> None:
        """Write the pieces one after the other; to be called in a thread.

        Raises:
            OSError: there is no room, or no file to be had.
        """
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            for piece in pieces:
                _write(file.fileno(), memoryview(piece))
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, position: int, size: int) -> bytes:
        """Give `size` bytes from `position`; to be called in a thread.

        Raises:
            OSError: the file cannot be read, or has fewer bytes.
        """
        data = os.pread(self._descriptor, size, position)
        if len(data) != size:
            raise OSError(f"{len(data)} of {size} bytes are there at {position}")
        return data


def _write(descriptor: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(descriptor, rest) :]
