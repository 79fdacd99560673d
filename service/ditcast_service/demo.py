"""`python -m ditcast_service.demo`: serve the embedded model, make one picture, stop everything.

It uses what a user would: `ditcast serve` and `ditcast generate`, over a private Unix socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ditcast_runtime.config import STARTER_MODEL

CACHE = STARTER_MODEL / "cache.yaml"
"""The cache settings that ship with the embedded model."""

PICTURE = Path("out") / "demo.png"
REQUEST = (
    "a large red circle left of a small blue square on a yellow background",
    *("--negative-prompt", " "),
    *("--true-cfg-scale", "3.0"),
    *("--steps", "50"),
    *("--seed", "42"),
)

_STOP_SECONDS = 60.0
_LAST_LINES = 20


def main() -> int:
    """Run the demo and give its exit code: 0 only if the picture is there."""
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.unlink(missing_ok=True)
    # A private folder: whoever can reach the socket can use the server.
    with tempfile.TemporaryDirectory(prefix="ditcast-demo-") as folder:
        address = f"unix:{folder}/socket"
        try:
            with _server(address) as serving:
                code = _generate(address) if serving else 1
        except KeyboardInterrupt:
            return 130
    if code == 0 and PICTURE.is_file():
        _say(f"The picture is {PICTURE.resolve()}. The server has stopped.")
        return 0
    _say("The demo failed.")
    return code or 1


@contextlib.contextmanager
def _server(address: str) -> Iterator[bool]:
    """Run `ditcast serve` and yield whether it got to serving; stops it in the end."""
    command = [sys.executable, "-m", "ditcast_service.serve", "--listen", address]
    command += ["--cache-dit-config", str(CACHE), "--log-format", "json"]
    _say(f"$ ditcast serve --listen {address} --cache-dit-config {CACHE.name}")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        last: deque[str] = deque(maxlen=_LAST_LINES)
        reader = threading.Thread(target=_show_loading, args=(process.stderr, last), daemon=True)
        reader.start()
        try:
            line = process.stdout.readline() if process.stdout else ""
            _say(line.strip() or "The server ended before it served:")
            if not line:
                reader.join(1.0)
                _say("".join(last))
            yield bool(line)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _show_loading(log: IO[str], last: deque[str]) -> None:
    """Print what the server does while it loads, and keep the last lines for a failure."""
    for line in log:
        last.append(line)
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("event") == "loading":
            _say(f"  {entry.get('stage', '')}")


def _generate(address: str) -> int:
    """Run `ditcast generate`, whose progress bar goes straight to the terminal."""
    command = [sys.executable, "-m", "ditcast_client", "generate", *REQUEST]
    command += ["--address", address, "--output", str(PICTURE)]
    _say(f'$ ditcast generate "{REQUEST[0]}" ... -o {PICTURE}')
    return subprocess.run(command, check=False, env=_environment()).returncode


def _environment() -> dict[str, str]:
    """Leave out what the user's own servers are configured with."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DITCAST_")}


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
