"""A hub on this machine: serves a folder under a model's id the way the client library asks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

MODEL = "somebody/model"
COMMIT = "c0ffee" * 6 + "c0de"
BRANCH = "main"


class Hub(ThreadingHTTPServer):
    """Serves one folder as `MODEL` at `COMMIT`, and counts the downloads of each file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder = folder
        self.downloads: Counter[str] = Counter()

    @property
    def endpoint(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> dict[str, bytes]:
        """Give all files by their paths."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


class _Answers(BaseHTTPRequestHandler):
    """Answers for the one model."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer what is asked."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer the headers alone."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as the library has it)
        """Say nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        api, resolve = f"/api/models/{MODEL}", f"/{MODEL}/resolve/"
        if path in (api, f"{api}/revision/{BRANCH}", f"{api}/revision/{COMMIT}"):
            names = [{"rfilename": name} for name in self.server.files()]
            self._send(json.dumps({"id": MODEL, "sha": COMMIT, "siblings": names}).encode())
            return
        if path == f"{api}/tree/{COMMIT}":
            files = self.server.files().items()
            entries = [{"type": "file", "path": name, "size": len(data)} for name, data in files]
            self._send(json.dumps([{**each, "oid": "0"} for each in entries]).encode())
            return
        _, _, name = path.removeprefix(resolve).partition("/")
        content = self.server.files().get(name) if path.startswith(resolve) else None
        if content is None:
            self._send(b"{}", status=404)
            return
        self.server.downloads[name] += with_body
        self._send(content, with_body=with_body)

    def _send(self, content: bytes, *, status: int = 200, with_body: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextmanager
def hub_of(folder: Path) -> Iterator[Hub]:
    """Run a hub while the context lasts."""
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
