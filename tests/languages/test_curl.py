"""Every call by hand, as docs/CURL.md shows it: each command of the page is run, in its order."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.flags import serve_config
from tests.docs.commands import ROOT, commands

from ditcast.v1.diffusion_service_pb2 import DESCRIPTOR

PAGE = ROOT / "docs" / "CURL.md"
BIN = Path(sys.executable).parent
SHOWN_AT = "127.0.0.1:50051"
SERVICE = "/ditcast.v1.DiffusionService/"

CALLS = [line for line in commands(PAGE) if line.startswith("buf curl")]


def method(call: str) -> str:
    """Give the name of the call of ours, or nothing."""
    return shlex.split(call, comments=True)[-1].partition(SERVICE)[2]


def test_every_call_of_the_contract_is_shown() -> None:
    """And none that there is not."""
    [service] = DESCRIPTOR.services_by_name.values()
    assert {method(call) for call in CALLS} - {""} == {each.name for each in service.methods}


def test_the_server_can_be_started_so(tmp_path: Path) -> None:
    """With the page's folder, which lies elsewhere here."""
    [start] = [line for line in commands(PAGE) if line.startswith("ditcast")]
    (tmp_path / "styles").mkdir()
    config = serve_config(shlex.split(start.replace("/srv/", f"{tmp_path}/"))[1:])
    assert config.adapter_folder == (f"{tmp_path}/styles",)


@pytest.fixture(scope="module")
def ended(direct: str) -> Mapping[str, subprocess.CompletedProcess[str]]:
    """Run all of the page's calls, one after the other, and give how each has ended."""
    return {
        call: run(call.replace(SHOWN_AT, direct).replace("buf curl", f"{BIN}/buf curl", 1))
        for call in CALLS
    }


def run(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line as a shell does."""
    return subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True)


def answers(call: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Read the JSON documents that a call has printed."""
    text, found, decoder = call.stdout.strip(), [], json.JSONDecoder()
    while text:
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:].lstrip()
    return found


@pytest.mark.mesh
@pytest.mark.parametrize("call", CALLS)
def test_a_call_ends_as_the_page_says(
    call: str, ended: Mapping[str, subprocess.CompletedProcess[str]]
) -> None:
    """With 0, or the code that stands behind it."""
    said = re.search(r"# exits with (\d+)$", call)
    expected = int(said[1]) if said else 0
    assert ended[call].returncode == expected, ended[call].stderr
    assert expected or ended[call].stdout


@pytest.mark.mesh
def test_events_are_those_of_a_generation(
    ended: Mapping[str, subprocess.CompletedProcess[str]],
) -> None:
    """Generate, then the same from the log, then those after one."""
    first, _ = (
        ended[call] for call in CALLS if method(call) == "Generate" and "# exits" not in call
    )
    again, rest = (ended[call] for call in CALLS if method(call) == "WatchGeneration")
    events = [answer["event"] for answer in answers(first)]
    assert "completed" in events[-1]
    assert sum("stepCompleted" in event for event in events) == 20
    assert [answer["event"] for answer in answers(again)] == events
    assert [answer["event"] for answer in answers(rest)] == events[20:]


@pytest.mark.mesh
def test_the_error_is_the_one_that_the_page_shows(
    ended: Mapping[str, subprocess.CompletedProcess[str]],
) -> None:
    """Word for word, and so is what is in its details."""
    blocks = re.findall(r"^```json\n([^`]*)```", PAGE.read_text("utf-8"), re.MULTILINE)
    shown = [json.loads(block) for block in blocks]
    [refused] = [ended[call] for call in CALLS if "# exits" in call]
    assert json.loads(refused.stderr) == shown[0]
    [convert] = [line for line in commands(PAGE) if "buf convert" in line]
    assert json.loads(run(convert.replace("buf convert", f"{BIN}/buf convert")).stdout) == shown[1]
