"""Two hosts on one machine: network namespaces with addresses of their own, and a link between."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

INTERFACE = "eth0"
"""The same name on both hosts, as gloo has to be told one."""


def fault() -> str:
    """Say why namespaces cannot be made here; empty: they can."""
    if shutil.which("ip") is None:
        return "there is no ip (iproute2)"
    if os.geteuid() != 0:
        return "network namespaces take root"
    name = f"ditcast-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


class Host:
    """One namespace; made by the constructor, removed by `remove`."""

    def __init__(self, name: str, address: str, core: int) -> None:
        """Make it, without a link; `core` is the only one that it may use."""
        self.name = f"ditcast-{os.getpid()}-{name}"
        self.address = address
        self._core = core
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")

    def __str__(self) -> str:
        return self.address

    @property
    def within(self) -> Sequence[str]:
        """What runs a command there."""
        return ("ip", "netns", "exec", self.name, "taskset", "-c", str(self._core))

    def link(self, other: Host) -> None:
        """Lay a link to another one."""
        ends = [f"dc{os.getpid() % 10**6}{side}" for side in "ab"]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end in zip((self, other), ends, strict=True):
            _ip("link", "set", end, "netns", host.name, "name", INTERFACE)
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            host.switch(on=True)

    def switch(self, *, on: bool) -> None:
        """Plug its end of the link in, or cut it."""
        _ip("-n", self.name, "link", "set", INTERFACE, "up" if on else "down")

    def remove(self) -> None:
        """Remove it with its end of the link, and so the link."""
        _ip("netns", "del", self.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
