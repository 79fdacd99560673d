"""Runs a page from top to bottom, as a reader who pastes it line by line into two terminals."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from tests.docs.commands import NEEDS, commands, files, programs

START_SECONDS = 180.0
STOP_SECONDS = 60.0

_INSTALLS = ("pip install", "python3 -m venv")
"""tests/packaging does that; here all is installed."""


class Session:
    """A page's commands, in a folder of their own; `ditcast serve` takes the place of the last one.

    Attributes:
        ran: the commands that were run, or started.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        address = f"unix:{folder}/socket"
        kept = {name: value for name, value in os.environ.items() if "DITCAST" not in name}
        self._variables = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
            # Where pages say nothing, not the usual port: others may use that one.
            "DITCAST_LISTEN": address,
            "DITCAST_ADDRESS": address,
        }
        self._log = folder / "log"
        self._server: subprocess.Popen[str] | None = None
        self._serves = False
        self._launcher: subprocess.Popen[bytes] | None = None
        self.ran: list[str] = []

    def run(self, page: Path) -> None:
        """Run all of it; whatever fails is an assertion."""
        for name, content in files(page).items():
            (self._folder / name).write_text(content, "utf-8")
        try:
            for line in commands(page):
                self._paste(line)
            for program in programs(page):
                self._try(program)
            self._stop()
        finally:
            self._clear_away()

    def _paste(self, line: str) -> None:
        if line.startswith(_INSTALLS) or NEEDS.search(line):
            return
        if line.startswith("ditcast serve"):
            self._stop()
            self._serve(shlex.split(line, comments=True))
        elif line.startswith("until "):
            with self._log.open("ab") as log:
                self._launcher = subprocess.Popen(
                    ["sh", "-c", line], cwd=self._folder, env=self._variables, stderr=log
                )
        else:
            if line.startswith("ditcast "):
                self._wait_serving()
                line = re.sub(r"\bID\b", self._newest(), line) if " ID" in line else line
            done = self._call("sh", "-euc", line)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}{self._tail()}"
        self.ran.append(line)

    def _try(self, program: str) -> None:
        """Run an example against the last server, wherever it says that it is."""
        self._wait_serving()
        address = self._variables["DITCAST_ADDRESS"]
        assert "127.0.0.1:50051" in program
        done = self._call(sys.executable, "-c", program.replace("127.0.0.1:50051", address))
        assert done.returncode == 0, f"{program}\n{done.stderr}{self._tail()}"

    def _serve(self, words: list[str]) -> None:
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                words,
                cwd=self._folder,
                env=self._variables,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._serves = False

    def _wait_serving(self) -> None:
        if self._serves:
            return
        assert self._server is not None
        assert self._server.stdout is not None
        readable, _, _ = select.select([self._server.stdout], [], [], START_SECONDS)
        said = self._server.stdout.readline() if readable else ""
        assert said.startswith("ditcast is serving"), self._tail()
        self._serves = True

    def _newest(self) -> str:
        """Give the id of the newest generation, which stands for the reader's own."""
        listed = self._call("ditcast", "list", "--limit", "1", "--json")
        [line] = listed.stdout.splitlines()
        return str(json.loads(line)["requestId"])

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self._folder, env=self._variables, capture_output=True, text=True
        )

    def _stop(self) -> None:
        """Stop the server as a reader does, with whatever started its ranks."""
        if self._server is None:
            return
        self._wait_serving()
        self._server.send_signal(signal.SIGINT)
        assert self._server.wait(STOP_SECONDS) == 0, self._tail()
        if self._launcher is not None:
            assert self._launcher.wait(STOP_SECONDS) == 0, self._tail()
        self._clear_away()

    def _clear_away(self) -> None:
        for process in (self._server, self._launcher):
            if process is None:
                continue
            if process.poll() is None:
                for each in psutil.Process(process.pid).children(recursive=True):
                    each.kill()
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._server = self._launcher = None

    def _tail(self) -> str:
        return self._log.read_text("utf-8", errors="replace")[-6000:]
