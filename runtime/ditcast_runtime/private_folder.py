"""The engine's private folder, and those that engines left which were killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "ditcast-"
_LOCK = "lock"


class PrivateFolder:
    """A folder that only this user can read, held by a lock that ends with the process.

    Private: whoever could write the rendezvous file in it could join the group of ranks.

    Attributes:
        path: Where it is.
    """

    def __init__(self) -> None:
        """Remove what nobody holds any more, then make it."""
        _remove_left_ones()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        unlocked = self.path / "unlocked"
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Under its name only now: another engine that starts would take it for a left one.
        unlocked.rename(self.path / _LOCK)

    def remove(self) -> None:
        """Remove it with all that is in it; nothing if that was done."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _remove_left_ones() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Somebody else's, or another program's: no lock of ours, or none that we may open.
        with contextlib.suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folder.stat().st_uid == os.geteuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
