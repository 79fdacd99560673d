"""No page shows a command that nobody looks at: it is run, parsed, or looked at elsewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from tests.deploy.flags import expect_client_command, serve_config
from tests.docs.commands import ROOT, commands, modules, pages

from ditcast_service.config import parser

BUILDS = {f"clients/{each}/README.md" for each in ("cpp", "go", "java", "typescript", "web")}
"""Pages of other languages' tools, which the clients' own tests call."""

INSTALLS = "python3 -m venv"
"""As tests/packaging/test_wheel.py does."""

TESTS = {path: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}

LINES = [
    (page.relative_to(ROOT).as_posix(), line)
    for page in pages()
    if page.relative_to(ROOT).as_posix() not in BUILDS
    for line in commands(page)
]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
EXTRAS = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
)


def is_read(page: str) -> bool:
    """Say whether a test reads this very page, by its place in the repository."""
    place = " / ".join(f'"{part}"' for part in Path(page).parts)
    return any(f"ROOT / {place}" in text for text in TESTS.values())


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_is_looked_at(page: str, line: str) -> None:
    """Our own are parsed here; a page with others has a test that reads it."""
    words = shlex.split(line, comments=True)
    while "=" in words[0]:  # Variables of that command alone.
        words = words[1:]
    match words:
        case ["ditcast", "serve", *arguments]:
            # Whether a server starts with the values too is seen by the page's own test.
            assert parser().parse_known_args(arguments)[1] == []
        case ["ditcast", *_]:
            expect_client_command(words)
        case ["pip", "install", what]:
            assert what.startswith("ditcast")
            assert set(re.findall(r"\w+", what.partition("[")[2])) <= EXTRAS
        case ["make", target, *_]:
            assert target in TARGETS
        case _:
            assert line.startswith(INSTALLS) or is_read(page)


def test_every_target_that_a_page_names_is_there() -> None:
    """In running text and in indented examples too."""
    for page in pages():
        text = page.read_text("utf-8")
        named = set(re.findall(r"(?:`|^    )make ([a-z][\w-]*)", text, re.MULTILINE))
        assert named <= TARGETS, page


@pytest.mark.parametrize("line", [line for page in pages() for line in modules(page)])
def test_a_module_takes_what_it_is_given(line: str) -> None:
    """What runs for minutes or hours is there, and names its flags."""
    _, name, *arguments = shlex.split(line, comments=True)
    found = importlib.util.find_spec(name)
    assert found is not None
    if found.submodule_search_locations is not None:
        found = importlib.util.find_spec(f"{name}.__main__")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text("utf-8")
    for word in arguments:
        assert not word.startswith("-") or f'"{word}"' in source


def test_servers_with_adapters_can_be_started(tmp_path: Path) -> None:
    """With the folder of docs/ADAPTERS.md, which lies elsewhere here."""
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / "style.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    [line] = [
        line for line in commands(ROOT / "docs" / "ADAPTERS.md") if line.startswith("ditcast serve")
    ]
    _, *arguments = shlex.split(line.replace("/srv/", f"{tmp_path}/"))
    [adapter] = serve_config(arguments).adapters
    assert adapter.name == "style"


def test_the_file_of_callers_is_understood(tmp_path: Path) -> None:
    """As docs/QUEUE.md shows it."""
    page = (ROOT / "docs" / "QUEUE.md").read_text("utf-8")
    [example] = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "callers.yaml").write_text(example, "utf-8")
    assert serve_config(["serve", "--callers", str(tmp_path / "callers.yaml")]).callers
