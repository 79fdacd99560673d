"""The threat model names tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "SECURITY.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and "---" not in line][1:]


def test_every_threat_has_a_test() -> None:
    """No row of the table only promises."""
    assert len(ROWS) > 10
    assert [row for row in ROWS if not re.search(r"`tests/[\w/]+\.py(::test_\w+)?`", row)] == []


@pytest.mark.parametrize(("file", "name"), NAMED, ids=map("::".join, NAMED))
def test_each_named_test_is_there(file: str, name: str) -> None:
    """By its file and its name, which a rename would leave behind."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    assert name in found if name else found


def test_it_says_what_the_secret_does_not_guard() -> None:
    """The ranks' own traffic needs a network of its own, and who reads this must learn it here."""
    [said] = [line for line in TEXT.split("\n- ") if "The group's secret guards" in line]
    for word in ("control address alone", "gloo", "NCCL", "TCPStore", "network of their own"):
        assert word in " ".join(said.split())
