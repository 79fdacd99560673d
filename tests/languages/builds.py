"""Builds the clients of other languages in a copy of the tree, with what this machine has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
PACKAGE = "github.com/ditcast/ditcast/clients"
"""Where Go looks for the clients."""

DEBIAN_GO = "/usr/share/gocode"
DEBIAN_JARS = Path("/usr/share/java")
NODE = 20
"""The oldest that the TypeScript client takes."""

_UNREACHABLE = re.compile(
    "ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ENOTCACHED"
)


@dataclass(frozen=True)
class Example:
    """An example program, which takes an address, a prompt and the file to write."""

    command: tuple[str | Path, ...]
    scheme: str = ""

    def call(self, address: str, prompt: str, file: Path, *more: str) -> list[str | Path]:
        """Give its command line."""
        return [*self.command, self.scheme + address, prompt, file, *more]


@dataclass(frozen=True)
class Go:
    """The Go client where Go looks for it, and the variables that say so."""

    folder: Path
    variables: dict[str, str]

    def run(self, *command: str, **variables: str) -> str:
        """Run a command of Go in it, with the codec for Debian's old grpc."""
        return done(
            ["go", command[0], "-tags", "oldgrpc", *command[1:]],
            self.folder,
            **self.variables,
            **variables,
        )


def copied(folder: Path) -> Path:
    """Copy the contract and the clients, so that nothing is built in the tree itself."""
    left_out = shutil.ignore_patterns("node_modules", "dist", "build", "web", "python")
    shutil.copytree(CLIENTS, folder / "clients", ignore=left_out)
    shutil.copytree(ROOT / "proto", folder / "proto", ignore=shutil.ignore_patterns("gen"))
    return folder / "clients"


def need(packages: str, *programs: str) -> None:
    """Skip where a program is missing, and say what brings it."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} (apt-get install {packages})")


def done(command: Sequence[str | Path], folder: Path, **variables: str) -> str:
    """Run a command that has to succeed, and give what it printed."""
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def typescript(clients: Path) -> Path:
    """Install and build the TypeScript client, and give its folder."""
    need("nodejs npm", "node", "npm")
    version = done(["node", "--version"], clients).strip()
    if int(version.lstrip("v").partition(".")[0]) < NODE:
        pytest.skip(f"node is {version}, and Connect needs {NODE} or newer (nodejs.org has it)")
    folder = clients / "typescript"
    installed = subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, text=True)
    if installed.returncode != 0 and _UNREACHABLE.search(installed.stderr):
        pytest.skip("npm reaches no registry, which has what the TypeScript client is built with")
    assert installed.returncode == 0, installed.stderr
    done(["npm", "run", "build"], folder)
    return folder


def go(clients: Path) -> Go:
    """Give the Go client, with Debian's packages in place of modules."""
    need("golang-go", "go")
    if not Path(DEBIAN_GO, "src/google.golang.org/grpc").is_dir():
        packages = "golang-google-grpc-dev golang-google-protobuf-dev"
        pytest.skip(f"no grpc for Go (apt-get install {packages})")
    path = clients.parent / "gopath"
    folder = path / "src" / PACKAGE / "go"
    shutil.copytree(clients / "go", folder)
    place = {"GO111MODULE": "off", "GOPATH": f"{path}:{DEBIAN_GO}", "GOPROXY": "off"}
    return Go(folder, place)


def cpp(clients: Path) -> Path:
    """Build the example in C++, and give the program."""
    packages = "g++ make pkg-config libgrpc++-dev libssl-dev protobuf-compiler-grpc"
    need(packages, "g++", "make", "pkg-config", "protoc", "grpc_cpp_plugin")
    wanted = ["pkg-config", "--exists", "grpc++", "protobuf", "libcrypto"]
    if subprocess.run(wanted, capture_output=True).returncode != 0:
        pytest.skip(f"no libraries of gRPC for C++ (apt-get install {packages})")
    done(["make", "-j2"], clients / "cpp", CXXFLAGS="-O0")  # As good for this, and soon compiled.
    return clients / "cpp" / "build" / "generate"


def java(clients: Path) -> Path:
    """Build the example in Java, and give its archive."""
    packages = (
        "openjdk-17-jdk-headless libgrpc-java libprotobuf-java libnetty-java libguava-java "
        "libperfmark-java libgeronimo-annotation-1.3-spec-java protobuf-compiler "
        "protobuf-compiler-grpc-java-plugin"
    )
    need(packages, "javac", "jar", "protoc", "grpc_java_plugin")
    names = ("grpc-netty", "protobuf", "netty-codec-http2", "guava", "perfmark-impl")
    if not all((DEBIAN_JARS / f"{name}.jar").exists() for name in names):
        pytest.skip(f"no libraries of gRPC for Java (apt-get install {packages})")
    done(["./build.sh"], clients / "java")
    return clients / "java" / "build" / "generate.jar"
