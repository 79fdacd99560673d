"""The commands of the group on two hosts, run: each pod's ranks by a torchrun of their own.

On this machine, with one rank a pod, the embedded model, and folders of ours in place of mounts;
all else is as the manifest has it, the secret, the socket and the rendezvous included.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.manifests import find
from tests.deploy.test_groups import LEADER, LEADER_ADDRESS, MANIFESTS, WORKER, container, expand
from tests.distributed.generations import picture
from tests.distributed.servers import STOP_SECONDS, Server

HERE = {LEADER_ADDRESS: "127.0.0.1", "10.0.0.2": "127.0.0.1", "eth0": "lo", "=4": "=1"}
"""What is different about this machine in the ranks' commands."""


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    """Make what the pods have mounted: the settings and the secret."""
    (tmp_path / "secret").write_text(secrets.token_hex(32))
    here = {
        "model: Qwen/Qwen-Image": "device: cpu",
        "ulysses_size: 8": "ulysses_size: 2",
        "/etc/ditcast": str(tmp_path),
    }
    for name, content in find(MANIFESTS, "ConfigMap")["data"].items():
        changed = content
        for there, mine in here.items():
            changed = changed.replace(there, mine)
        (tmp_path / name).write_text(changed)
    return tmp_path


@pytest.fixture
def ports() -> dict[str, str]:
    """Give ports of our own for those that the manifest names, which others may have here."""
    return {f":{port}": f":{free_port()}" for port in (50052, 29400)}


def led_here(words: list[str], mounts: Path, ports: dict[str, str]) -> list[str]:
    """Put this machine's folders and ports into a command."""
    folders = {"/etc/ditcast/": f"{mounts}/", "/group/": f"{mounts}/", "/ranks/": f"{mounts}/"}
    for there, mine in {**folders, **ports}.items():
        words = [word.replace(there, mine) for word in words]
    return words


@pytest.fixture
def server(mounts: Path, ports: dict[str, str]) -> Iterator[Server]:
    """Start the leader's service; `--world-size` is what two ranks are."""
    _, *flags = led_here(container(LEADER, "ditcast")["args"], mounts, ports)
    made = Server(mounts, *flags, "--world-size", "2")
    yield made
    made.clear_away()


@pytest.fixture
def ranks(mounts: Path, ports: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the ranks of the worker and of the leader, in this order."""
    started: list[subprocess.Popen[bytes]] = []
    for template in (WORKER, LEADER):
        program, *words = led_here(expand(container(template, "ranks")["command"]), mounts, ports)
        assert program == "torchrun"
        for there, mine in HERE.items():
            words = [word.replace(there, mine) for word in words]
        command = [sys.executable, "-m", "torch.distributed.run", *words]
        with (mounts / f"ranks-{len(started)}").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
    yield started
    for each in started:
        each.kill()
        each.wait()


@pytest.mark.mesh
async def test_they_find_each_other_and_leave_together(
    server: Server, ranks: list[subprocess.Popen[bytes]]
) -> None:
    """A picture is made by both, and SIGTERM to the service alone ends all of it with 0."""
    server.wait_serving()
    async with server.client() as client:
        assert (await client.capabilities()).world_size == 2
        assert await picture(client, num_inference_steps=2)
    server.stop()
    assert [each.wait(STOP_SECONDS) for each in ranks] == [0, 0]
