"""The pages that a newcomer pastes, run from top to bottom against real servers and ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.docs.commands import NEEDS, ROOT, commands, files
from tests.docs.session import Session

from ditcast_service.config import load

QUICKSTART = ROOT / "docs" / "QUICKSTART.md"
README = ROOT / "README.md"

PAGES = pytest.mark.parametrize("page", [README, QUICKSTART], ids=lambda page: page.name)


@pytest.mark.mesh
@PAGES
def test_it_can_be_pasted(page: Path, tmp_path: Path) -> None:
    """Every command ends with 0, and pictures are there under the names that were given."""
    session = Session(tmp_path)
    session.run(page)
    wanted = {line for line in commands(page) if line.startswith("ditcast") and " ID" not in line}
    assert {line for line in wanted if not NEEDS.search(line)} <= set(session.ran)
    for line in session.ran:
        _, found, name = line.partition(" -o ")
        if found:
            with Image.open(tmp_path / name.split()[0]) as picture:
                assert picture.size == (128, 128)


@PAGES
def test_what_needs_hardware_is_understood(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings are such as there are, which a machine without it can say too."""
    monkeypatch.chdir(tmp_path)
    shown = files(page) or {"cache.yaml": "parallelism_config:\n  ulysses_size: auto\n"}
    for name, content in shown.items():
        (tmp_path / name).write_text(content, "utf-8")
    marked = [line for line in commands(page) if NEEDS.search(line)]
    assert marked
    for line in marked:
        program, command, *arguments = line.partition("#")[0].split()
        assert (program, command) == ("ditcast", "serve")
        load(arguments, {})
