"""Where the figures are fetched: over HTTP, with TLS where the service has it, by nobody twice."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from tests.service.test_security import write_certificate

from ditcast_runtime.errors import ConfigError
from ditcast_service.config import ServerConfig
from ditcast_service.metrics import Metrics
from ditcast_service.metrics_endpoint import MetricsEndpoint
from ditcast_service.tls import TlsFiles


@contextlib.asynccontextmanager
async def endpoint(tls: TlsFiles | None = None) -> AsyncIterator[tuple[str, list[None]]]:
    """Serve the figures of a server that did nothing; give where, and the looks that were taken."""
    looks: list[None] = []
    made = MetricsEndpoint(Metrics(ServerConfig()).families.registry, lambda: looks.append(None))
    address = await made.listen("127.0.0.1:0", tls)
    try:
        yield address, looks
    finally:
        made.close()


async def ask(address: str, request: bytes, context: ssl.SSLContext | None = None) -> str:
    """Send bytes, and read what comes until the end."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        writer.write(request)
        return (await reader.read()).decode()
    finally:
        writer.close()


async def test_each_scrape_looks_at_the_engine_first() -> None:
    """What is a state is as it is now; text for Prometheus, or OpenMetrics where it is wanted."""
    async with endpoint() as (address, looks):
        answer = await ask(address, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert len(looks) == 1
        assert answer.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        assert "\nditcast_queue_capacity 64.0\n" in answer
        wanted = (
            b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
        )
        answer = await ask(address, wanted)
        assert "application/openmetrics-text" in answer
        assert answer.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET / HTTP/1.1", "404"), ("POST /metrics HTTP/1.1", "405"), ("nonsense", "405")],
)
async def test_nothing_else_is_there(request_line: str, status: str) -> None:
    """One path and one method; nothing is looked at for others."""
    async with endpoint() as (address, looks):
        answer = await ask(address, f"{request_line}\r\n\r\n".encode())
        assert answer.split()[1] == status
        assert looks == []


async def test_what_is_no_request_is_closed() -> None:
    """Endless headers, or none, cost no more than their connection."""
    async with endpoint() as (address, looks):
        assert await ask(address, b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 10_000) == ""
        assert looks == []


async def test_a_taken_address_is_a_problem_of_the_configuration() -> None:
    """It is said by the flag, and not served in silence."""
    async with endpoint() as (address, _):
        other = MetricsEndpoint(Metrics(ServerConfig()).families.registry, lambda: None)
        with pytest.raises(ConfigError, match="metrics_listen: cannot listen on"):
            await other.listen(address, None)


async def test_it_has_the_services_own_tls_which_is_read_again(tmp_path: Path) -> None:
    """With a CA of clients a scraper shows a certificate; a new chain needs no restart."""
    authority = trustme.CA()
    write_certificate(tmp_path, authority)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    files = TlsFiles(
        certificate=tmp_path / "certificate.pem",
        key=tmp_path / "key.pem",
        client_ca=tmp_path / "ca.pem",
    )
    stranger, scraper = ssl.create_default_context(), ssl.create_default_context()
    for context in (stranger, scraper):
        authority.configure_trust(context)
    authority.issue_cert("prometheus").configure_cert(scraper)
    scrape = b"GET /metrics HTTP/1.1\r\n\r\n"
    async with endpoint(files) as (address, looks):
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert await ask(address, scrape, stranger) == ""
        assert looks == []
        assert "ditcast_build_info" in await ask(address, scrape, scraper)
        first = await _serial_number(address, scraper)
        write_certificate(tmp_path, authority)
        assert await _serial_number(address, scraper) != first
        (tmp_path / "key.pem").write_text("half written")
        assert "ditcast_build_info" in await ask(address, scrape, scraper)


async def _serial_number(address: str, context: ssl.SSLContext) -> str:
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    certificate = writer.get_extra_info("peercert")
    writer.close()
    return str(certificate["serialNumber"])
