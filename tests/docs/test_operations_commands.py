"""What docs/OPERATIONS.md says: its commands can start a server, and no limit is left out."""

from __future__ import annotations

import re
import shlex

from tests.docs.commands import ROOT, commands

from ditcast_client.client import _CHANNEL_OPTIONS
from ditcast_service.config import FIELDS, ServerConfig, load
from ditcast_service.server import _options
from ditcast_service.telemetry import wants_traces
from ditcast_service.translate.capabilities import MIN_PING_INTERVAL_SECONDS

PAGE = ROOT / "docs" / "OPERATIONS.md"
TEXT = PAGE.read_text("utf-8")

ELSEWHERE = {
    "promtool check rules deploy/prometheus/rules.yaml",  # tests/deploy/test_dashboards.py
    "pip install 'ditcast[server,otel]'",
}


def test_every_command_is_accepted() -> None:
    """With the variables before it, which are OpenTelemetry's."""
    lines = [line.partition("#")[0].strip() for line in commands(PAGE)]
    assert set(lines) >= ELSEWHERE
    served = [line for line in lines if line not in ELSEWHERE]
    assert served
    for line in served:
        words = shlex.split(line)
        variables = dict(word.split("=", 1) for word in words[: words.index("ditcast")])
        assert wants_traces(variables) is bool(variables)
        assert words[len(variables) + 1] == "serve"
        load(words[len(variables) + 2 :], {})


def test_every_limit_of_time_and_size_is_told() -> None:
    """Each setting that is a time or a number of bytes, in a guide; defaults are the code's."""
    guides = set(PAGE.parent.glob("*.md")) - {PAGE.with_name("CONFIGURATION.md")}
    told = {flag for page in guides for flag in re.findall(r"--[a-z-]+", page.read_text("utf-8"))}
    for field in FIELDS:
        if field.kind is float or field.name.endswith("_bytes"):
            assert field.flag in told | {"--chunk-bytes"}, field.flag
    assert set(re.findall(r"`(--[a-z-]+)`", TEXT)) <= {field.flag for field in FIELDS}
    defaults = {field.flag: field.default for field in FIELDS}
    rows = re.findall(r"^\| `(--[a-z-]+)` \| (\d+) s \|", TEXT, re.MULTILINE)
    assert len(rows) > 12
    for flag, seconds in rows:
        assert float(seconds) == defaults[flag], flag


def test_the_keepalive_policy_is_the_servers() -> None:
    """As its options have it, and as the client that ships keeps it."""
    options = dict(_options(ServerConfig()))
    policy = " ".join(TEXT.partition("## Keepalive")[2].partition("## ")[0].split())
    borne = options["grpc.http2.min_ping_interval_without_data_ms"] // 1000
    assert f"Clients may ping every {MIN_PING_INTERVAL_SECONDS} s" in policy
    assert f"{borne} s are borne" in policy
    assert options["grpc.keepalive_permit_without_calls"] == 1
    every, after = (options[f"grpc.keepalive_{name}_ms"] // 1000 for name in ("time", "timeout"))
    assert f"The server pings every {every} s" in policy
    assert f"does not answer for {after} s" in policy
    own = dict(_CHANNEL_OPTIONS)["grpc.keepalive_time_ms"] // 1000
    assert f"Our clients ping every {own} s" in policy


def test_what_holds_between_releases_names_its_tests() -> None:
    """Each row says where it is seen, by a file that there is."""
    skew = TEXT.partition("## Upgrades and version skew")[2].partition("\n## ")[0]
    rows = [
        line for line in skew.splitlines() if line.startswith("| ") and "what holds" not in line
    ]
    assert len(rows) > 5
    for row in rows:
        named = re.findall(r"`([\w/]+\.(?:py|toml))`", row.rpartition(" | ")[2])
        assert named, row
        assert all((ROOT / each).is_file() for each in named)
