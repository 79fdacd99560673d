"""docs/ADDING_A_PIPELINE.md leads to files, names and fields that there are."""

from __future__ import annotations

import ast
import dataclasses
import re

from google.protobuf.json_format import MessageToDict
from tests.docs.commands import ROOT
from tests.kinds.kinds import BY_NAME, Kind

from ditcast.v1.capabilities_pb2 import Capabilities

TEXT = (ROOT / "docs" / "ADDING_A_PIPELINE.md").read_text("utf-8")
SNIPPETS = [
    ast.parse(f"({code.strip().rstrip(',')})" if code.startswith(" ") else code)
    for code in re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
]


def test_every_file_that_it_names_is_there() -> None:
    """A rename would leave a newcomer looking."""
    named = set(re.findall(r"`((?:runtime|service|tests)/[\w/]+(?:\.py)?)`", TEXT))
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_what_is_seen_is_in_the_capabilities() -> None:
    """Under these names, as `ditcast info --json` shows it."""
    every = {field.json_name for field in Capabilities.DESCRIPTOR.fields}
    told = {
        cell
        for line in TEXT.splitlines()
        if line.startswith("| ") and "runtime/" in line and line.count(" | ") == 3
        for cell in re.findall(r"`([a-z]+(?:[A-Z]\w+)?)(?:\.\w+)?`", line.rpartition(" | ")[2])
    }
    assert len(told) > 8
    assert told - {"loading"} <= every
    assert MessageToDict(Capabilities(cancellable=True)) == {"cancellable": True}


def test_the_example_is_a_kind_that_is_not_there_yet() -> None:
    """Its fields are those of a kind, all that the text explains too."""
    fields = {field.name for field in dataclasses.fields(Kind)}
    [builder, entry] = SNIPPETS
    [function] = builder.body
    assert isinstance(function, ast.FunctionDef)
    assert function.name not in BY_NAME
    [call] = [node for node in ast.walk(entry) if isinstance(node, ast.Call)]
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    assert given.keys() <= fields
    assert ast.literal_eval(given["name"]) == function.name
    told = re.findall(r"^- `(\w+)(?:=\w+)?`", TEXT, re.MULTILINE)
    assert len(told) == 4
    assert set(told) <= fields
