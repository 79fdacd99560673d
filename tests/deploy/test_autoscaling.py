"""Figures on their way: from the port to Prometheus, through the adapter, to the autoscaler."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from tests.deploy.figures import NAME, labels_asked_for, samples
from tests.deploy.flags import serve_config
from tests.deploy.manifests import KUBERNETES, Manifest, find, render
from tests.deploy.test_dashboards import RULES, rules
from tests.deploy.test_images import compose
from tests.service.test_metrics_endpoint import ask, endpoint

PROMETHEUS = RULES.parent
SCRAPES = PROMETHEUS / "prometheus.yaml"
ADAPTER = yaml.safe_load((PROMETHEUS / "adapter.yaml").read_text("utf-8"))["rules"]
MANIFESTS = render(KUBERNETES / "overlays" / "autoscaled")
PODS = ("ditcast-a", "ditcast-b")


def expanded(rule: dict[str, Any]) -> str:
    """Give the query that the adapter makes for these pods, as its documentation has it."""
    query: str = rule["metricsQuery"]
    for name, value in {
        "Series": rule["seriesQuery"].partition("{")[0],
        "LabelMatchers": f'namespace="default",pod=~"{"|".join(PODS)}"',
        "GroupBy": "pod",
    }.items():
        query = query.replace(f"<<.{name}>>", value)
    assert "<<" not in query
    return query


def test_the_autoscaler_asks_for_what_the_adapter_gives() -> None:
    """By name; and the adapter for figures that there are, with labels that Prometheus adds."""
    spec = find(MANIFESTS, "HorizontalPodAutoscaler")["spec"]
    asked = [each["pods"]["metric"]["name"] for each in spec["metrics"]]
    assert asked == [rule["name"]["as"] for rule in ADAPTER]
    known = samples()
    for rule in ADAPTER:
        [name] = set(NAME.findall(rule["seriesQuery"]))
        assert rule["name"]["matches"] == f"^{name}$"
        assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}
        assert labels_asked_for(expanded(rule)) <= known[name] | {"namespace", "pod"}


def test_the_autoscaler_alone_says_how_many() -> None:
    """Of what is deployed; a number in the manifest would come back with each apply."""
    deployment = find(MANIFESTS, "Deployment")
    target = find(MANIFESTS, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]


def test_the_monitor_finds_the_figures() -> None:
    """From its selector to the Service, to the port, to the flag; and the policy lets it in."""
    monitor: Manifest = find(MANIFESTS, "ServiceMonitor")["spec"]
    service = find(MANIFESTS, "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [fetched] = monitor["endpoints"]
    assert fetched["path"] == "/metrics"
    [through] = [each for each in service["spec"]["ports"] if each["name"] == fetched["port"]]
    [server] = find(MANIFESTS, "Deployment")["spec"]["template"]["spec"]["containers"]
    [port] = [each for each in server["ports"] if each["name"] == through["targetPort"]]
    [flag] = [each for each in server["args"] if each.startswith("--metrics-listen")]
    config = serve_config(["serve", "--insecure", flag])
    assert config.metrics_listen == f"0.0.0.0:{port['containerPort']}"
    allowed = find(MANIFESTS, "NetworkPolicy")["spec"]["ingress"]
    assert [port["name"]] in [[each["port"] for each in rule["ports"]] for rule in allowed]


def test_the_composed_prometheus_knows_server_and_rules() -> None:
    """By the service's name and the port of its flag; the files lie where it is told."""
    [job] = yaml.safe_load(SCRAPES.read_text("utf-8"))["scrape_configs"]
    [[target]] = [each["targets"] for each in job["static_configs"]]
    config = serve_config(compose()["server"]["command"])
    assert target == f"server:{config.metrics_listen.rpartition(':')[2]}"
    prometheus = compose()["prometheus"]
    assert f"--config.file=/etc/prometheus/{SCRAPES.name}" in prometheus["command"]
    assert "./prometheus:/etc/prometheus:ro" in prometheus["volumes"]
    assert set(prometheus["networks"]) & set(compose()["server"]["networks"])


@pytest.mark.mesh
def test_the_adapters_queries_give_one_figure_a_pod(tmp_path: Path) -> None:
    """The queue of all priorities, and the part of the time that was busy, by promtool."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    waits, busy = map(expanded, ADAPTER)
    first, second = (f'namespace="default",pod="{name}"' for name in PODS)
    case = {
        "interval": "15s",
        "input_series": [
            {"series": f'ditcast_queue_depth{{priority="low",{first}}}', "values": "1x60"},
            {"series": f'ditcast_queue_depth{{priority="high",{first}}}', "values": "3x60"},
            {"series": f'ditcast_queue_depth{{priority="low",{second}}}', "values": "0x60"},
            # Two at once are no busier than one.
            {"series": f"ditcast_generations_running{{{first}}}", "values": "2x60"},
            {"series": f"ditcast_generations_running{{{second}}}", "values": "0x60"},
        ],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "5m",
                "exp_samples": [
                    {"labels": f'{{pod="{name}"}}', "value": value}
                    for name, value in zip(PODS, values, strict=True)
                ],
            }
            for query, values in ((waits, (4, 0)), (busy, (1, 0)))
        ],
    }
    (tmp_path / "case.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    done = subprocess.run(
        [promtool, "test", "rules", "case.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.mesh
async def test_prometheus_fetches_and_watches(tmp_path: Path) -> None:
    """The real one, with the composed configuration, from the real endpoint."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    shutil.copy(RULES, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        web = f"127.0.0.1:{free.getsockname()[1]}"
    async with endpoint() as (address, looks):
        text = SCRAPES.read_text("utf-8").replace("server:9464", address).replace("15s", "1s")
        (tmp_path / "prometheus.yaml").write_text(text)
        process = await asyncio.create_subprocess_exec(
            program,
            "--config.file=prometheus.yaml",
            "--storage.tsdb.path=data",
            f"--web.listen-address={web}",
            cwd=tmp_path,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            found: list[dict[str, Any]] = []
            async with asyncio.timeout(60):
                while not found:
                    await asyncio.sleep(0.2)
                    found = await _query(web, 'sum(ditcast_queue_depth{job="ditcast"})')
            watched = await _get(web, "/api/v1/rules")
        finally:
            process.terminate()
            await process.wait()
    assert [sample["value"][1] for sample in found] == ["0"]
    assert looks
    [group] = watched["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in rules()]


async def _query(web: str, query: str) -> list[dict[str, Any]]:
    try:
        answer = await _get(web, f"/api/v1/query?query={quote(query)}")
    except OSError:  # It does not listen yet.
        return []
    found: list[dict[str, Any]] = answer["result"]
    return found


async def _get(web: str, path: str) -> dict[str, Any]:
    answer = await ask(web, f"GET {path} HTTP/1.0\r\n\r\n".encode())
    head, _, body = answer.partition("\r\n\r\n")
    # Until it has read its log it answers 503.
    if not head.startswith("HTTP/1.0 200"):
        raise ConnectionError(head)
    data: dict[str, Any] = json.loads(body)["data"]
    return data
