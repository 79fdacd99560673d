"""Rules and dashboard ask for figures that there are, and every alert is tried and explained."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.figures import NAME, labels_asked_for, samples

from ditcast_service.metric_families import Families

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
RULE_TESTS = RULES.with_name("rules.test.yaml")
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
OPERATIONS = ROOT / "docs" / "OPERATIONS.md"


def rules() -> list[dict[str, Any]]:
    """List the alerts."""
    [group] = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    alerts: list[dict[str, Any]] = group["rules"]
    return alerts


def queries() -> Iterator[tuple[str, str]]:
    """List every query with where it stands."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]


QUERIES = list(queries())
SAMPLES = samples()


@pytest.mark.parametrize(("place", "query"), QUERIES, ids=[place for place, _ in QUERIES])
def test_a_query_asks_for_what_there_is(place: str, query: str) -> None:
    """Names, and the labels that are compared or summed by, are those of the registry."""
    names = set(NAME.findall(query))
    assert names
    assert names <= SAMPLES.keys()
    known = {"job", "instance"}.union(*(SAMPLES[name] for name in names))
    assert labels_asked_for(query) <= known


def test_the_dashboard_shows_every_family() -> None:
    """None is measured for nobody."""
    shown = {name for _, query in QUERIES for name in NAME.findall(query)}
    for family in Families().described:
        assert any(name.startswith(family.name) for name in shown), family.name


def test_the_dashboard_is_one() -> None:
    """Panels have numbers of their own, lie within the grid and do not overlap."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in mine) < 24
        assert not mine & cells, panel["title"]
        cells |= mine


def test_every_alert_is_tried_and_explained() -> None:
    """It fires in a case of its own, stays silent in another, and the guide says what to do."""
    cases = yaml.safe_load(RULE_TESTS.read_text("utf-8"))["tests"]
    tried = [case for each in cases for case in each["alert_rule_test"]]
    fires = {case["alertname"] for case in tried if case.get("exp_alerts")}
    silent = {case["alertname"] for case in tried if not case.get("exp_alerts")}
    alerts = [rule["alert"] for rule in rules()]
    assert set(alerts) == fires == silent
    headings = re.findall(r"^### (Ditcast\w+)$", OPERATIONS.read_text("utf-8"), re.MULTILINE)
    assert headings == alerts


@pytest.mark.mesh
@pytest.mark.parametrize("command", ["check rules rules.yaml", "test rules rules.test.yaml"])
def test_promtool_finds_nothing_wrong(command: str) -> None:
    """The rules are rules, and each alert fires where it should and nowhere else."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    checked = subprocess.run(
        [promtool, *command.split()], cwd=RULES.parent, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
