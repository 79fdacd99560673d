"""A line of the log is one line, and says what it says: whatever a caller has called itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HOSTILE = "\x1b[2J\x07\u202eé"
LINE = 'x\r\n{"event": "rpc ended"}'
SCRIPT = """
import json, sys
import structlog
from ditcast_runtime import logs
logs.configure(json_logs=sys.argv[1] == "json", level="info", rank=0)
log = structlog.get_logger()
log.info("rpc ended", request_id=json.loads(sys.argv[2]), caller=sys.argv[3], steps=3)
try:
    secret = json.loads(sys.argv[2])
    raise RuntimeError("a bug")
except RuntimeError:
    log.exception("rpc failed", error_id="abc")
"""


def written(form: str) -> str:
    """Log in a process of its own, in one of the two forms; give what it wrote."""
    command = [sys.executable, "-c", SCRIPT, form, json.dumps(HOSTILE), LINE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


def test_json_lines_hold_everything_as_it_was() -> None:
    """Each line is one object; the traceback stands in the line of its id."""
    lines = written("json").splitlines()
    ended, failed = map(json.loads, lines)
    assert (ended["request_id"], ended["caller"], ended["steps"]) == (HOSTILE, LINE, 3)
    assert (failed["error_id"], failed["level"], failed["rank"]) == ("abc", "error", 0)
    assert "RuntimeError: a bug" in failed["exception"]


def test_pretty_lines_do_nothing_to_a_terminal() -> None:
    """Nothing that a caller sent moves the cursor, rings, turns the text or makes a line."""
    text = written("console")
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    [line] = [line for line in text.splitlines() if "request_id" in line]
    assert "rpc ended" in line
    assert "é" in line
    assert "\\x1b[2J" in line


def test_pretty_tracebacks_show_no_local_variables() -> None:
    """They would show prompts and pixels."""
    text = written("console")
    assert "RuntimeError: a bug" in text
    assert "secret =" not in text.replace("secret = json.loads", "")


@pytest.mark.parametrize("form", ["json", "console"])
def test_both_forms_have_the_same_fields(form: str) -> None:
    """What is looked for in one can be looked for in the other."""
    text = written(form)
    for part in ("request_id", "steps", "error_id", "rank", "rpc failed"):
        assert part in text
