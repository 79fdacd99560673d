"""Kinds that are not Kubernetes' own, by models that were generated from their definitions.

The extra `mesh` brings those of Istio and of Prometheus' operator. Gateway API, Envoy Gateway and
LeaderWorkerSet have none there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.deploy.manifests import Manifest, overlays, render
from tests.deploy.test_dashboards import RULES

pytestmark = pytest.mark.mesh

MODELS = {
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
    "networking.istio.io/v1": "cloudcoil.models.istio.networking.v1",
    "security.istio.io/v1": "cloudcoil.models.istio.security.v1",
}
"""Modules with a class for each kind, by the kinds' version."""

RULE = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "PrometheusRule",
    "metadata": {"name": "ditcast"},
    "spec": yaml.safe_load(RULES.read_text("utf-8")),
}
"""What deploy/README.md makes of the alerts."""


def known() -> list[Manifest]:
    """List every manifest whose kind has a model, each once."""
    rendered = [each for folder in overlays() for each in render(folder)]
    found = {
        (each["kind"], each["metadata"]["name"]): each
        for each in rendered
        if each["apiVersion"] in MODELS
    }
    return [*found.values(), RULE]


def unread(manifest: Manifest) -> list[str]:
    """List what a kind's model does not know; pydantic's ValidationError if a value is wrong."""
    name = MODELS[manifest["apiVersion"]]
    if importlib.util.find_spec("cloudcoil") is None:
        pytest.skip("cloudcoil's models are not installed (pip install 'ditcast[mesh]')")
    model: Any = getattr(importlib.import_module(name), manifest["kind"])
    read = model.model_validate(manifest)
    text = read.model_dump_json(by_alias=True, exclude_none=True, exclude_unset=True)
    return list(_missing(manifest, json.loads(text), manifest["kind"]))


def _missing(given: object, read: object, place: str) -> Iterator[str]:
    if isinstance(given, dict):
        for name, value in given.items():
            if isinstance(read, dict) and name in read:
                yield from _missing(value, read[name], f"{place}.{name}")
            else:
                yield f"{place}.{name}"
    elif isinstance(given, list):
        assert isinstance(read, list)
        for index, (value, other) in enumerate(zip(given, read, strict=True)):
            yield from _missing(value, other, f"{place}[{index}]")


@pytest.mark.parametrize(
    "manifest", known(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_a_kind_is_valid(manifest: Manifest) -> None:
    """Its values are of the right types, and no field is one that there is not."""
    assert unread(manifest) == []


def test_a_slip_would_be_seen() -> None:
    """Else the test before this one could not fail."""
    broken = json.loads(json.dumps(RULE))
    broken["spec"]["groups"][0]["rules"][0]["epxr"] = "up"
    assert unread(broken) == ["PrometheusRule.spec.groups[0].rules[0].epxr"]
