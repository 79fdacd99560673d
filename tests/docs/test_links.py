"""Links within the repository lead somewhere: to a file, and to a heading of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs.commands import ROOT, pages

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def headings(page: Path) -> set[str]:
    """Give the anchors of a page's headings, as they are made on the web."""
    found = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_its_links_lead_somewhere(page: Path) -> None:
    """A file that was moved, or a heading that was renamed, is found here."""
    for name, anchor in LINK.findall(page.read_text("utf-8")):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), name
        if anchor:
            assert anchor in headings(target), f"{name}#{anchor}"


def test_the_index_has_every_guide() -> None:
    """None is to be found by its name alone."""
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / name).resolve() for name, _ in LINK.findall(index.read_text("utf-8"))}
    assert {page.resolve() for page in index.parent.glob("*.md")} - {index} <= linked
