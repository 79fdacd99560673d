"""Who may call, by a file that names them: bearer tokens, names in client certificates, scopes.

The file is read again when it changes. One that cannot be read then leaves the last good one in
force, and the log says so: a slip of an editor must neither open the door nor shut it.

```yaml
callers:
  - name: studio                  # the identity: generations are each identity's own
    token: 7f9c4a1e0b5d4c3e8f21   # at least 16 characters; or token_sha256: its hash in hexadecimal
    scopes: [generate]
  - name: operators
    certificate: ops.example.org  # a name in the client's certificate, where those are asked for
    scopes: [generate, admin]
    max_queued_per_client: 20     # also max_generations_per_client and max_bytes_per_client: for
                                  # this caller instead of the settings of these names; 0: no limit
```
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import yaml

from ditcast_runtime.config import ClientLimits
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import Problem
from ditcast_runtime.settings.problems import nearest

LEAST_TOKEN_CHARACTERS = 16

LIMITS = {
    "max_generations_per_client": (0, 100_000),
    "max_queued_per_client": (0, 100_000),
    "max_bytes_per_client": (0, 2**50),
}
"""Settings that a caller may have values of its own for, with their ends, both inclusive."""

_KEYS = ("name", "token", "token_sha256", "certificate", "scopes", *LIMITS)
_SHA256 = re.compile("[0-9a-f]{64}")

_log = structlog.get_logger(__name__)


class Scope(enum.StrEnum):
    """What a caller may do."""

    GENERATE = "generate"
    """Generate, and watch, list and cancel one's own; tune, which generates."""
    ADMIN = "admin"
    """Change the configuration and the adapters, list everybody's generations, read channelz."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who is known, and what they may do."""

    identity: str
    scopes: frozenset[Scope]
    limits: ClientLimits = field(default_factory=ClientLimits)
    """What the file says of what this one may have at once; the settings say the rest."""


ANYBODY = Caller("", frozenset(Scope))
"""Who calls where nobody has to say who they are."""


@dataclass(frozen=True, slots=True)
class _Entry:
    caller: Caller
    token_digest: bytes | None
    certificate: str | None


class Callers:
    """The callers of one file."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ConfigError: it cannot be read, or what it says cannot be.
        """
        self._path = path
        self._stamp = _stamp(path)
        self._entries = _read(path)

    def identify(self, token: str | None, certificate_names: Collection[str]) -> Caller | None:
        """Give the caller that a token, or else a name in a verified certificate, belongs to."""
        self._read_again()
        if token is not None:
            return self._by_token(hashlib.sha256(token.encode()).digest())
        for entry in self._entries:
            if entry.certificate is not None and entry.certificate in certificate_names:
                return entry.caller
        return None

    def _by_token(self, digest: bytes) -> Caller | None:
        found = None
        # All of them, and each in constant time: how long it takes tells nothing of any token.
        for entry in self._entries:
            if entry.token_digest and hmac.compare_digest(entry.token_digest, digest):
                found = entry.caller
        return found

    def _read_again(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._entries = _read(self._path)
        except ConfigError as error:
            _log.error("the file of callers is kept as it was", error=str(error))
        else:
            _log.info("read the file of callers again", callers=len(self._entries))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Tell one version of a file from another; None while there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 (once a call: half the time of Path.stat)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _read(path: Path) -> tuple[_Entry, ...]:
    """Read all entries; ConfigError with everything that is wrong, and never with a token."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError((Problem("callers", f"cannot read {path}: {error}"),)) from error
    except yaml.YAMLError as error:
        # Not what the parser says: it quotes lines, and those hold tokens.
        raise ConfigError((Problem("callers", f"{path} is no YAML"),)) from error
    listed = content.get("callers") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(listed, list) or not listed:
        raise ConfigError((Problem("callers", "it must be a list under this one key"),))
    problems: list[Problem] = []
    entries = [_entry(f"callers[{index}]", each, problems) for index, each in enumerate(listed)]
    found = tuple(entry for entry in entries if entry is not None)
    _refuse_doubles(found, problems)
    if problems:
        raise ConfigError(tuple(problems))
    return found


def _entry(place: str, given: object, problems: list[Problem]) -> _Entry | None:
    before = len(problems)
    if not isinstance(given, dict):
        problems.append(Problem(place, "it must be a mapping"))
        return None
    problems += [
        Problem(f"{place}.{key}", f"there is no such key{nearest(str(key), _KEYS)}")
        for key in given
        if key not in _KEYS
    ]
    name = given.get("name")
    if not isinstance(name, str) or not name:
        problems.append(Problem(f"{place}.name", "it must be a text"))
    proofs = [key for key in ("token", "token_sha256", "certificate") if key in given]
    if len(proofs) != 1:
        problems.append(Problem(place, "it needs one of token, token_sha256 and certificate"))
    digest = _token_digest(place, given, problems)
    certificate = given.get("certificate")
    if certificate is not None and not (isinstance(certificate, str) and certificate):
        problems.append(Problem(f"{place}.certificate", "it must be a text"))
    scopes = _scopes(place, given.get("scopes"), problems)
    limits = _limits(place, given, problems)
    if len(problems) > before:
        return None
    return _Entry(Caller(str(name), scopes, limits), digest, certificate)


def _token_digest(place: str, given: dict[str, object], problems: list[Problem]) -> bytes | None:
    if "token" in given:
        token = given["token"]
        if isinstance(token, str) and len(token) >= LEAST_TOKEN_CHARACTERS and token.isascii():
            return hashlib.sha256(token.encode()).digest()
        reason = f"it must be a text of at least {LEAST_TOKEN_CHARACTERS} ASCII characters"
        problems.append(Problem(f"{place}.token", reason))
    if "token_sha256" in given:
        digest = given["token_sha256"]
        if isinstance(digest, str) and _SHA256.fullmatch(digest):
            return bytes.fromhex(digest)
        problems.append(Problem(f"{place}.token_sha256", "it must be 64 hexadecimal digits"))
    return None


def _scopes(place: str, given: object, problems: list[Problem]) -> frozenset[Scope]:
    words = given if isinstance(given, list) else []
    if not words or any(word not in set(Scope) for word in words):
        reason = f"it must be a list of some of {', '.join(Scope)}"
        problems.append(Problem(f"{place}.scopes", reason))
        return frozenset()
    return frozenset(map(Scope, words))


def _limits(place: str, given: dict[str, object], problems: list[Problem]) -> ClientLimits:
    found = {}
    for name, (low, high) in LIMITS.items():
        value = given.get(name)
        if type(value) is int and low <= value <= high:
            found[name] = value
        elif name in given:
            reason = f"it must be a whole number, {low} to {high}"
            problems.append(Problem(f"{place}.{name}", reason))
    return ClientLimits(**found)


def _refuse_doubles(entries: tuple[_Entry, ...], problems: list[Problem]) -> None:
    """Two callers with one proof could not be told apart. One name may have several proofs."""
    seen: set[object] = set()
    callers: dict[str, Caller] = {}
    for entry in entries:
        proof = entry.token_digest or entry.certificate
        name = entry.caller.identity
        if proof in seen:
            problems.append(Problem("callers", f"{name!r} has what another caller has"))
        if callers.setdefault(name, entry.caller) != entry.caller:
            reason = f"{name!r} has different scopes or limits in different places"
            problems.append(Problem("callers", reason))
        seen.add(proof)
