"""A `ditcast serve` of its own process, with its log kept and its descendants accounted for."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from ditcast_client import Client

START_SECONDS = 180.0
"""Generous: a start takes 5 to 10 s, and other tests may want the same cores."""
STOP_SECONDS = 60.0
WAIT_SECONDS = 60.0
ORPHAN_SECONDS = 2.0
"""How long any process may outlive the service that started it."""

_MARK = "TEST_SERVER_MARK"
_TAIL_LINES = 60
_STACK_LINES = 80


class Server:
    """A server on a Unix socket, and wherever `flags` say; made by `launch`, ended by `stop`."""

    def __init__(
        self, folder: Path, *flags: str, faults: bool = False, within: Sequence[str] = ()
    ) -> None:
        """Launch it, with injected faults where they are asked for; then `wait_serving`.

        `within` is a command that runs it elsewhere, such as in another network namespace.
        """
        self.mark = uuid.uuid4().hex
        self.folder = folder / self.mark[:8]
        self.scratch = self.folder / "tmp"
        self.scratch.mkdir(parents=True)
        self.address = f"unix:{self.folder}/socket"
        self.log = self.folder / "log"
        self.fault_runs = self.folder / "runs"
        self.step_times = self.folder / "steps"
        self._within = within
        self._flags = flags
        self._variables = self._environment() | (self._faulty() if faults else {})
        self.process = self._launch()

    def restart(self) -> None:
        """Start it again at its place, as whoever runs it does, and wait until it serves."""
        assert not self.alive
        self.process = self._launch()
        self.wait_serving()

    def _launch(self) -> subprocess.Popen[str]:
        self._said = ""
        self._terminated = False
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [
                    *self._within,
                    *(sys.executable, "-m", "ditcast_service.serve"),
                    *("--listen", self.address, "--log-format", "json", *self._flags),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._variables,
            )

    def wait_serving(self) -> None:
        """Wait for the line that it prints once it serves."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        self._said = self.process.stdout.readline() if readable else ""
        assert self._said.startswith("ditcast is serving"), self.tail()

    @property
    def addresses(self) -> list[str]:
        """Where it listens, as it said, so that port 0 is known."""
        return self._said.strip().partition(" on ")[2].split(", ")

    @property
    def alive(self) -> bool:
        """Whether the service process runs."""
        return self.process.poll() is None

    def client(self) -> Client:
        """Connect to its socket."""
        return Client(self.address)

    def descendants(self) -> list[psutil.Process]:
        """List every process that it started, orphans too: they inherit the mark."""
        return [
            process
            for process in psutil.process_iter()
            if process.pid != self.process.pid and self._marked(process)
        ]

    def ranks(self) -> list[psutil.Process]:
        """List the ranks' processes in the order of the ranks."""
        return sorted(self.descendants(), key=lambda rank: (rank.create_time(), rank.pid))

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read the structured lines of the log so far."""
        for line in self.log.read_text("utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry

    async def ended(self, request_id: str) -> dict[str, Any]:
        """Wait for the log's line on the end of a generation."""
        return await self.logged(event="generation ended", request_id=request_id)

    async def logged(self, **expected: object) -> dict[str, Any]:
        """Wait for a line of the log with these fields, and give it."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for entry in self.entries():
                    if expected.items() <= entry.items():
                        return entry
                await asyncio.sleep(0.05)

    def tail(self) -> str:
        """Give the log's last lines, and the stacks of whatever died of a signal."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        fatal = next((n for n, line in enumerate(lines) if "Fatal Python error" in line), None)
        stacks = [] if fatal is None else ["...", *lines[fatal : fatal + _STACK_LINES], "..."]
        return "\n".join([*stacks, *lines[-_TAIL_LINES:]])

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._terminated = True
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end of the service process and give its exit code."""
        try:
            return self.process.wait(STOP_SECONDS)
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()

    def stop(self) -> None:
        """Stop it, and hold it to its promise: exit code 0, and nothing left behind."""
        if not self._terminated:
            self.terminate()
        assert self.wait() == 0, self.tail()
        # torch keeps a cache folder of its own there.
        assert list(self.scratch.glob("ditcast*")) == []
        self.expect_no_orphans()

    def kill(self) -> None:
        """Kill the service process alone."""
        self.process.kill()
        self.wait()

    def clear_away(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.alive:
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        for process in self.descendants():
            process.kill()

    def expect_no_orphans(self) -> None:
        """Fail if a process outlives the service by more than a moment."""
        limit = time.monotonic() + ORPHAN_SECONDS
        while (left := self.descendants()) and time.monotonic() < limit:
            time.sleep(0.05)
        assert left == [], self.tail()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "DITCAST" not in name}
        return kept | {
            _MARK: self.mark,
            "TMPDIR": str(self.scratch),
            # From the first line of a rank on, before it can enable it itself.
            "PYTHONFAULTHANDLER": "1",
        }

    def _faulty(self) -> dict[str, str]:
        self.fault_runs.mkdir()
        path = [str(Path(__file__).with_name("faults")), os.environ.get("PYTHONPATH", "")]
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "FAULT_RUNS": str(self.fault_runs),
            "STEP_TIMES": str(self.step_times),
        }

    def _marked(self, process: psutil.Process) -> bool:
        try:
            return (
                process.environ().get(_MARK) == self.mark
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False


def serve(folder: Path, *flags: str, faults: bool = False) -> Server:
    """Start a server and wait until it serves."""
    server = Server(folder, *flags, faults=faults)
    try:
        server.wait_serving()
    except BaseException:
        server.clear_away()
        raise
    return server


class MortalServers:
    """Servers for tests that may end them: a living one is used again, a dead one replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: dict[int, Server] = {}

    def get(self, world_size: int) -> Server:
        """Give a server of so many ranks that serves."""
        server = self.started.get(world_size)
        if server is None or not server.alive:
            # One attempt: what it takes for a generation to end with its ranks.
            flags = (
                *("--world-size", str(world_size), "--max-attempts", "1"),
                *("--metrics-listen", "127.0.0.1:0"),
            )
            server = serve(self._folder, *flags)
            self.started[world_size] = server
        return server

    def clear_away(self) -> None:
        """End what still lives."""
        for server in self.started.values():
            server.clear_away()
