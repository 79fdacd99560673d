"""The TypeScript and the Go client pass their own tests, and are made of today's contract."""

from __future__ import annotations

import filecmp
import re
from pathlib import Path

import pytest
from tests.languages.builds import CLIENTS, Go, done, need

pytestmark = pytest.mark.mesh

MADE_BY = ("protoc-gen-go v1.28.1", "libprotoc 3.21.12")
"""Other versions make other code, which is as good."""


def test_typescript(typescript: Path, address: str) -> None:
    """Progress, refusals, a full queue, cancel, leaving, a connection that is cut."""
    said = done(["npm", "test"], typescript, DITCAST_URL=f"http://{address}")
    counts = dict(re.findall(r"^\W+(pass|skipped) (\d+)$", said, re.MULTILINE))
    assert int(counts["pass"]) >= 12
    assert counts["skipped"] == "0"


def test_go(go: Go, address: str) -> None:
    """The same."""
    said = go.run("test", "-v", "-count=1", "./...", DITCAST_ADDRESS=address)
    assert said.count("--- PASS: ") >= 8
    assert "--- SKIP: " not in said


def test_go_has_nothing_to_complain_of(go: Go) -> None:
    """Neither vet nor gofmt."""
    go.run("vet", "./...")
    assert done(["gofmt", "-l", "."], go.folder) == ""


def test_the_contract_in_typescript_is_current(typescript: Path) -> None:
    """`npm run generate` changes nothing."""
    done(["npm", "run", "generate"], typescript)
    expect_same(typescript / "gen", CLIENTS / "typescript" / "gen")


def test_the_contract_in_go_is_current(go: Go, clients: Path) -> None:
    """`generate.sh` changes nothing."""
    need(
        "protobuf-compiler protoc-gen-go protoc-gen-go-grpc",
        *("protoc", "protoc-gen-go", "protoc-gen-go-grpc"),
    )
    versions = tuple(
        done([program, "--version"], clients).strip() for program in ("protoc-gen-go", "protoc")
    )
    if versions != MADE_BY:
        pytest.skip(f"the committed code is of {MADE_BY}, and here is {versions}")
    done(["./generate.sh"], clients / "go")
    expect_same(clients / "go" / "ditcastv1", CLIENTS / "go" / "ditcastv1")


def expect_same(made: Path, committed: Path) -> None:
    """Expect the same files with the same content in both folders."""
    files = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    assert files == {path.relative_to(committed) for path in committed.rglob("*") if path.is_file()}
    _, other, failed = filecmp.cmpfiles(made, committed, map(str, files), shallow=False)
    assert (other, failed) == ([], [])
