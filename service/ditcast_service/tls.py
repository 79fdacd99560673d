"""The server's certificates, read again when their files change, so that none outlives its date."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import structlog

from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import Problem

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """Where the server's certificates lie, all in PEM."""

    certificate: Path
    """The server's chain, its own certificate first."""
    key: Path
    client_ca: Path | None
    """Whom to believe about clients. None: clients show no certificate."""


class Certificates:
    """What is in the files; each new connection gets what is in them then."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            ConfigError: one cannot be read, or they do not belong together.
        """
        self._files = files
        self._held = _read(files)

    def credentials(self) -> grpc.ServerCredentials:
        """Give what a port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._held),
            # Its types leave out the None, by which it may say that nothing is new.
            cast("Callable[[], grpc.ServerCertificateConfiguration]", self._changed),
            require_client_authentication=self._files.client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Be asked by gRPC at each handshake, on a thread of its own; None: nothing is new."""
        try:
            found = _read(self._files)
        except ConfigError as error:
            # Between two writes the key is not the certificate's: the next handshake looks again.
            _log.warning("the certificates are kept as they were", error=str(error))
            return None
        if found == self._held:
            return None
        self._held = found
        _log.info("read the certificates again")
        return _configuration(found)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Give what asyncio opens a port with; each handshake gets what is in the files then.

    Raises:
        ConfigError: one cannot be read, or they do not belong together.
    """
    held, context = _read(files), _context(files)

    def renew(connection: ssl.SSLObject | ssl.SSLSocket, *_: object) -> None:
        nonlocal held, context
        try:
            found = _read(files)
        except ConfigError as error:
            _log.warning("the certificates are kept as they were", error=str(error))
            found = held
        if found != held:
            held, context = found, _context(files)
        connection.context = context

    # Called at each handshake, also where the client names no server.
    context.sni_callback = renew
    return context


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key, password=_no_password)
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@dataclass(frozen=True, slots=True)
class _Contents:
    certificate: bytes
    key: bytes
    client_ca: bytes | None


def _read(files: TlsFiles) -> _Contents:
    problems: list[Problem] = []
    contents = _Contents(
        _bytes("tls_certificate", files.certificate, problems) or b"",
        _bytes("tls_key", files.key, problems) or b"",
        _bytes("tls_client_ca", files.client_ca, problems),
    )
    if not problems:
        _check(files, problems)
    if problems:
        raise ConfigError(tuple(problems))
    return contents


def _bytes(field: str, path: Path | None, problems: list[Problem]) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        problems.append(Problem(field, f"cannot read {path}: {error.strerror}"))
        return None


def _check(files: TlsFiles, problems: list[Problem]) -> None:
    """Find out what gRPC would only say at the first handshake, and to its own log."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = f"{files.certificate} and {files.key} are no certificate and its key: {error}"
        problems.append(Problem("tls_certificate", reason))
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            reason = f"{files.client_ca} holds no certificate: {error}"
            problems.append(Problem("tls_client_ca", reason))


def _no_password() -> str:
    # Without it, OpenSSL asks the terminal, and a server waits there for ever.
    raise ValueError("the key has a password")


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(contents.key, contents.certificate)], contents.client_ca
    )
