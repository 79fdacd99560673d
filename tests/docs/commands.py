"""Reads out of a page what a reader would paste: commands, and the files that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

NEEDS = re.compile(r"# needs \w+ GPUs?$")
"""What stands after a command that cannot be run without it."""


def blocks(page: Path) -> list[list[str]]:
    """List the examples of a page, each by its lines; one that ends in a backslash is continued."""
    found = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [block.replace("\\\n", " ").splitlines() for block in found]


def commands(page: Path) -> Iterator[str]:
    """List the lines of all examples of a page, without those that only say something."""
    for block in blocks(page):
        yield from (line for line in block if line.strip() and not line.startswith("#"))


def modules(page: Path) -> list[str]:
    """List the lines of indented examples that run a module."""
    return re.findall(r"^    \S*python (-m .*)$", page.read_text("utf-8"), re.MULTILINE)


def programs(page: Path) -> list[str]:
    """List the examples in Python."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def files(page: Path) -> dict[str, str]:
    """Give the files that a page shows under their names: "```yaml file=cache.yaml"."""
    found = re.findall(
        r"^```\w+ file=(\S+)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return dict(found)


def pages() -> list[Path]:
    """List every page of the repository that was written, and not installed or made."""
    skipped = {"node_modules", ".venv", ".git", "build", "dist"}
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not skipped & {*path.relative_to(ROOT).parts} and not path.name.startswith(".")
    )
