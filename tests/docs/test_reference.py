"""The references in docs/ are what the code and the contract say."""

from __future__ import annotations

import re

import pytest
from tests.docs.reference import REFERENCES, ROOT, api, configuration

from ditcast.v1 import diffusion_service_pb2
from ditcast_service.config import FIELDS


@pytest.mark.parametrize("name", REFERENCES)
def test_it_is_what_is_written_now(name: str) -> None:
    """After a change of a setting or of the contract: `make docs`."""
    assert (ROOT / "docs" / name).read_text("utf-8") == REFERENCES[name](), "run `make docs`"


def test_every_setting_has_its_line() -> None:
    """With a text of its own."""
    lines = [line for line in configuration().splitlines() if line.startswith("| `--")]
    assert len(lines) == len(FIELDS)
    assert all(re.fullmatch(r"\| `--[\w-]+` \| .+ \| .* \| .{15,} \|", line) for line in lines)


def test_every_rpc_and_every_link_is_there() -> None:
    """Links lead to headings of the same file."""
    text = api()
    headings = {match.lower() for match in re.findall(r"^### (\w+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= headings
    service = diffusion_service_pb2.DESCRIPTOR.services_by_name["DiffusionService"]
    assert {method.name.lower() for method in service.methods} <= headings
