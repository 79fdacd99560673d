"""Where the model comes from: its folder, or the hub; and reading it once before anybody loads it.

Rank 0 fetches and reads while the others wait. Reading every weight file from its first byte to its
last is what a slow disk does best; afterwards they lie in the page cache, from which all ranks of
the machine map them. The same bytes make the digest.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import huggingface_hub
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub.utils.tqdm import disable_progress_bars

from ditcast_runtime.errors import ConfigError
from ditcast_runtime.launches import Launch
from ditcast_runtime.weights import check_weights, weight_files

_READERS = 4
"""Files that are read and hashed at a time."""
_PIECE_BYTES = 4 * 2**20
_TOLD_EVERY_SECONDS = 0.5


class Report(Protocol):
    """Hears of each stage of loading, and how many bytes of it are done."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Take in where loading is; `total` 0: it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A model that is there, on this machine."""

    folder: Path
    revision: str
    """The commit on the hub; empty for a folder."""
    digest: str = ""
    """SHA-256 over every weight file's relative path and content. Empty: this rank has not read."""


def fetch(launch: Launch, report: Report) -> Source:
    """Get the model and read its weights.

    Raises:
        ConfigError: there are no weights that can be loaded.
        OSError: the hub does not have it, or cannot be reached.
    """
    source = locate(launch) if Path(launch.model).is_dir() else _download(launch, report)
    problems = check_weights(source.folder, launch.variant)
    if problems:
        raise ConfigError(tuple(problems))
    return Source(source.folder, source.revision, _read(source.folder, launch.variant, report))


def locate(launch: Launch) -> Source:
    """Find what another rank has fetched."""
    folder = Path(launch.model)
    if folder.is_dir():
        return Source(folder, "")
    return _snapshot(launch, local_files_only=True)


def _snapshot(launch: Launch, *, local_files_only: bool) -> Source:
    folder = huggingface_hub.snapshot_download(
        launch.model,
        revision=launch.model_revision or None,
        allow_patterns=["*.json", "*.yaml"],
        local_files_only=local_files_only,
    )
    # The hub keeps each commit's files in a folder of its name.
    return Source(Path(folder), Path(folder).name)


def _download(launch: Launch, report: Report) -> Source:
    """Download what is missing of one commit, the one that the revision stands for now."""
    disable_progress_bars()
    report("asking the hub")
    source = _snapshot(launch, local_files_only=False)
    blobs = source.folder.parents[1] / "blobs"
    before = _size(blobs)
    with _telling(lambda: report("downloading", _size(blobs) - before)):
        DiffusionPipeline.download(
            launch.model,
            revision=source.revision,
            variant=launch.variant or None,
            use_safetensors=True,
        )
    return source


def _size(folder: Path) -> int:
    """Give the bytes in a folder, those of files that are still being written too."""
    sizes = 0
    for file in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # Renamed, as it is complete.
            sizes += file.stat().st_size
    return sizes


def _read(folder: Path, variant: str, report: Report) -> str:
    """Read every weight file once, in as many threads as help, and give the digest of all."""
    files = sorted(file for group in weight_files(folder, variant).values() for file in group)
    total = sum(file.stat().st_size for file in files)
    done = _Counter()
    readers = min(_READERS, len(os.sched_getaffinity(0)))
    with (
        _telling(lambda: report("reading the weights", done.count, total)),
        concurrent.futures.ThreadPoolExecutor(readers) as pool,
    ):
        digests = list(pool.map(lambda file: _hash(file, done), files))
    whole = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        whole.update(str(file.relative_to(folder)).encode())
        whole.update(digest)
    return whole.hexdigest()


class _Counter:
    """Bytes that all threads have read so far."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count what one thread has read."""
        with self._lock:
            self.count += count


def _hash(path: Path, done: _Counter) -> bytes:
    digest = hashlib.sha256()
    piece = bytearray(_PIECE_BYTES)
    with path.open("rb", buffering=0) as file, memoryview(piece) as view:
        while count := file.readinto(piece):
            digest.update(view[:count])
            done.add(count)
    return digest.digest()


@contextlib.contextmanager
def _telling(tell: Callable[[], None]) -> Iterator[None]:
    """Tell now, at intervals from a thread while the context lasts, and at its end."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(_TOLD_EVERY_SECONDS):
            tell()

    tell()
    thread = threading.Thread(target=repeat, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    tell()
