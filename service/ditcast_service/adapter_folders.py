"""The files that adapters may be loaded from: those of the folders that the operator listed.

What a caller sends is only ever compared with the names of these files; it is never made a path.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditcast_runtime.config import Adapter
from ditcast_runtime.settings import Problem
from ditcast_service.refusals import UnknownAdapterFile

SUFFIX = ".safetensors"
"""Other formats can run code when they are read."""

NAME_PATTERN = re.compile("[A-Za-z0-9_-]{1,64}")
NAME_REASON = 'a name has 1 to 64 letters, digits, "_" and "-"'


@dataclass(frozen=True, slots=True)
class AdapterFolders:
    """Lists files, and looks one up by its listed name."""

    folders: Sequence[str]

    def available(self) -> dict[str, Path]:
        """Give every file by its name: the folder's own name, a slash, the path within it."""
        found = (entry for folder in self.folders for entry in _files(folder))
        return dict(sorted(found))

    def find(self, name: str, file: str) -> Adapter:
        """Describe a listed file as an adapter to load; reads all of it.

        Raises:
            UnknownAdapterFile: it is not listed, or cannot be read.
        """
        path = self.available().get(file)
        if path is None:
            raise UnknownAdapterFile(file)
        try:
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                size = os.fstat(opened.fileno()).st_size
        except OSError as error:
            raise UnknownAdapterFile(file) from error
        return Adapter(name=name, file=file, path=str(path), weights_digest=digest, size_bytes=size)


def own_name(folder: str) -> str:
    """Give what the names of a folder's files begin with."""
    return Path(os.path.abspath(folder)).name  # noqa: PTH100 - resolve() would name a link's target


def check_folders(folders: Sequence[str], where: str) -> Iterator[Problem]:
    """Find what is wrong with the operator's list."""
    names: dict[str, str] = {}
    for folder in folders:
        name = own_name(folder)
        if not Path(folder).is_dir():
            yield Problem(where, f"{folder!r} is no folder")
        elif not name or not _can_be_sent(name):
            yield Problem(where, f"{folder!r} has no name that could be listed")
        elif name in names:
            yield Problem(where, f"{folder!r} and {names[name]!r} are both called {name!r}")
        names.setdefault(name, folder)


def load_listed(
    folders: Sequence[str], asked: Sequence[str], where: str, problems: list[Problem]
) -> tuple[Adapter, ...]:
    """Describe what the operator wants to be loaded at the start, each as NAME=FILE."""
    found: dict[str, Adapter] = {}
    for text in asked:
        name, _, file = text.partition("=")
        try:
            if not NAME_PATTERN.fullmatch(name):
                raise ValueError(NAME_REASON)  # noqa: TRY301
            if name in found:
                raise ValueError(f"{name} stands there twice")  # noqa: TRY301
            found[name] = AdapterFolders(folders).find(name, file)
        except ValueError as error:
            problems.append(Problem(where, f"{text!r}: {error}: it must be NAME=FILE"))
        except UnknownAdapterFile as error:
            problems.append(Problem(where, f"{text!r}: {error}"))
    return tuple(found.values())


def _files(folder: str) -> Iterator[tuple[str, Path]]:
    """Give a folder's files; what leads out of it, or is no plain file, is left out."""
    root = Path(folder).resolve()
    for place, _, names in os.walk(root):
        for name in names:
            path = Path(place, name)
            listed = f"{own_name(folder)}/{path.relative_to(root)}"
            if name.endswith(SUFFIX) and _can_be_sent(listed) and _is_inside(path, root):
                yield listed, path.resolve()


def _is_inside(path: Path, root: Path) -> bool:
    try:
        # Anything else than a plain file could block who opens it.
        return path.resolve().is_relative_to(root) and stat.S_ISREG(path.stat().st_mode)
    except (OSError, RuntimeError):
        return False


def _can_be_sent(name: str) -> bool:
    """Say whether a name has only characters that a message can carry and a terminal can show."""
    return name.isprintable()
