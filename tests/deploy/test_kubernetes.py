"""The manifests: core kinds by Kubernetes' own schemas, the others by what must stand in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests.deploy.flags import file_at, serve_config
from tests.deploy.manifests import KUBERNETES, Manifest, find, overlays, render

from ditcast.v1 import diffusion_service_pb2
from ditcast_service import health, lifecycle
from ditcast_service.cache_dit_file import read
from ditcast_service.callers import Scope
from ditcast_service.config import ServerConfig
from ditcast_service.gate import NEEDED

VERSION = "1.37"
UNKNOWN = {
    "AuthorizationPolicy",
    "BackendTrafficPolicy",
    "DestinationRule",
    "GRPCRoute",
    "Gateway",
    "LeaderWorkerSet",
    "PeerAuthentication",
    "ServiceMonitor",
    "VirtualService",
}
"""Kinds whose schemas Kubernetes has not: checked by hand below, some by test_custom_kinds.py."""

SERVICE = diffusion_service_pb2.DESCRIPTOR.services_by_name["DiffusionService"]
DEPLOYED = [
    folder
    for folder in overlays()
    if any(manifest["kind"] == "Deployment" for manifest in render(folder))
]
"""All but groups over several hosts, which test_groups.py looks at."""
PER_OVERLAY = pytest.mark.parametrize("folder", DEPLOYED, ids=lambda path: path.name)


def container(manifests: list[Manifest]) -> Manifest:
    """Give the server's container."""
    [found] = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def config(manifests: list[Manifest], folder: Path) -> ServerConfig:
    """Give the settings of the server, from its arguments and the files that are mounted for it."""
    files = {
        name: file_at(folder, name, content)
        for name, content in find(manifests, "ConfigMap")["data"].items()
    }
    settings = yaml.safe_load(files["ditcast.yaml"].read_text("utf-8"))
    mounted = Path(settings["cache_dit_config"])
    assert mounted.parent == Path("/etc/ditcast")
    settings["cache_dit_config"] = str(files[mounted.name])
    file_at(folder, "ditcast.yaml", yaml.safe_dump(settings))
    arguments = [
        argument.replace("/etc/ditcast", str(folder)) for argument in container(manifests)["args"]
    ]
    return serve_config(arguments)


@pytest.mark.parametrize("folder", overlays(), ids=lambda path: path.name)
def test_every_known_kind_is_valid(folder: Path) -> None:
    """Strictly: a misspelled field is an error. A kind without a schema is one that is listed."""
    unknown = set()
    for manifest in render(folder):
        try:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(manifest["kind"])
    assert unknown <= UNKNOWN


def test_the_validator_sees_mistakes() -> None:
    """Else the test before this one could not fail."""
    broken = find(render(KUBERNETES / "base"), "Deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["readinessProbes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_every_unknown_kind_is_used_and_said() -> None:
    """The list holds no kind of the past, and the guide says what was not validated."""
    used = {manifest["kind"] for folder in overlays() for manifest in render(folder)}
    assert used >= UNKNOWN
    guide = (KUBERNETES.parent / "README.md").read_text("utf-8")
    assert all(f"`{kind}`" in guide for kind in UNKNOWN)


@PER_OVERLAY
def test_flags_and_files_are_such_as_there_are(folder: Path, tmp_path: Path) -> None:
    """Every argument, key and cache-dit option is one of this version; the world fits the GPUs."""
    manifests = render(folder)
    settings = config(manifests, tmp_path)
    limits, requests = (container(manifests)["resources"][each] for each in ("limits", "requests"))
    assert int(limits["nvidia.com/gpu"]) == settings.world_size
    assert requests["nvidia.com/gpu"] == limits["nvidia.com/gpu"]
    assert settings.cache_dit_config is not None
    read(settings.cache_dit_config)


@PER_OVERLAY
def test_a_pod_that_leaves_has_the_time_it_takes(folder: Path, tmp_path: Path) -> None:
    """Kubernetes kills at the end of the period whatever still runs."""
    manifests = render(folder)
    settings = config(manifests, tmp_path)
    pod = find(manifests, "Deployment")["spec"]["template"]["spec"]
    leaving = container(manifests)["lifecycle"]["preStop"]["sleep"]["seconds"]
    ending = settings.grace + settings.shutdown_timeout + lifecycle._LAST_WORDS_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= leaving + ending
    readiness = container(manifests)["readinessProbe"]
    assert leaving > readiness["periodSeconds"] * readiness["failureThreshold"]


@PER_OVERLAY
def test_probes_ask_the_health_service_what_it_answers(folder: Path) -> None:
    """Who only loads is alive and not ready: the process is never killed for loading."""
    found = container(render(folder))
    [port] = [port["containerPort"] for port in found["ports"] if port["name"] == "grpc"]
    assert found["readinessProbe"]["grpc"] == {"port": port}
    for probe in ("startupProbe", "livenessProbe"):
        assert found[probe]["grpc"] == {"port": port, "service": health.LIVENESS}


@PER_OVERLAY
def test_no_variable_of_kubernetes_looks_like_one_of_ours(folder: Path) -> None:
    """A Service named ditcast puts DITCAST_PORT into every pod, which the server would refuse."""
    assert (
        find(render(folder), "Deployment")["spec"]["template"]["spec"]["enableServiceLinks"]
        is False
    )


@PER_OVERLAY
def test_selectors_select_the_pods(folder: Path) -> None:
    """A selector with a slip selects nothing, in silence."""
    manifests = render(folder)
    deployment = find(manifests, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert find(manifests, "Service")["spec"]["selector"] == labels
    for selector in (
        deployment["selector"],
        find(manifests, "PodDisruptionBudget")["spec"]["selector"],
        find(manifests, "NetworkPolicy")["spec"]["podSelector"],
    ):
        assert selector == {"matchLabels": labels}


@PER_OVERLAY
def test_a_pod_may_little(folder: Path) -> None:
    """Not root, nothing writable but what is mounted, and no account at Kubernetes."""
    manifests = render(folder)
    pod = find(manifests, "Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container(manifests)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount["name"] for mount in container(manifests)["volumeMounts"]}
    assert {"/tmp", "/models", "/dev/shm"} <= mounts.keys()  # noqa: S108 (a mount, not a file)
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}


def methods(scope: Scope) -> set[str]:
    """List the calls for callers of a scope, as the service's own gate has it."""
    admin = {name for name, needed in NEEDED.items() if Scope.ADMIN in needed}
    every = {method.name for method in SERVICE.methods}
    return admin if scope is Scope.ADMIN else every - admin


def test_istio_separates_configure_from_generate() -> None:
    """Each call is in the policy of its scope, and in no other."""
    manifests = render(KUBERNETES / "overlays" / "istio")
    prefix = f"/{SERVICE.full_name}/"
    for name, scope in (("generate", Scope.GENERATE), ("configure", Scope.ADMIN)):
        policy = find(manifests, "AuthorizationPolicy", f"ditcast-{name}")["spec"]
        assert policy["action"] == "ALLOW"
        assert policy["selector"] == {"matchLabels": {"app.kubernetes.io/name": "ditcast"}}
        [rule] = policy["rules"]
        [to] = rule["to"]
        paths = {path for path in to["operation"]["paths"] if path.startswith(prefix)}
        assert paths == {f"{prefix}{method}" for method in methods(scope)}
        assert [each["source"]["principals"] for each in rule["from"]]


def test_istio_streams_without_a_limit() -> None:
    """No route cuts a stream, TLS is the mesh's, and refusals eject no server."""
    manifests = render(KUBERNETES / "overlays" / "istio")
    routes = find(manifests, "VirtualService")["spec"]["http"]
    assert {route["timeout"] for route in routes} == {"0s"}
    policy = find(manifests, "DestinationRule")["spec"]["trafficPolicy"]
    assert policy["tls"]["mode"] == "ISTIO_MUTUAL"
    assert policy["loadBalancer"]["simple"] == "LEAST_REQUEST"
    assert policy["outlierDetection"]["consecutive5xxErrors"] == 0
    assert find(manifests, "PeerAuthentication")["spec"]["mtls"]["mode"] == "STRICT"


def test_the_gateway_separates_configure_from_generate() -> None:
    """Each call is routed on the listener of its scope, and no stream is cut."""
    manifests = render(KUBERNETES / "overlays" / "gateway-api")
    listeners = {each["name"] for each in find(manifests, "Gateway")["spec"]["listeners"]}
    for name, scope in (("generate", Scope.GENERATE), ("configure", Scope.ADMIN)):
        route = find(manifests, "GRPCRoute", f"ditcast-{name}")["spec"]
        assert [parent["sectionName"] for parent in route["parentRefs"]] == [name]
        assert name in listeners
        found: list[dict[str, Any]] = [
            match["method"] for rule in route["rules"] for match in rule["matches"]
        ]
        ours = {each["method"] for each in found if each["service"] == SERVICE.full_name}
        assert ours == methods(scope)
    policy = find(manifests, "BackendTrafficPolicy")["spec"]
    assert policy["timeout"]["http"]["requestTimeout"] == "0s"
    assert policy["healthCheck"]["active"]["grpc"]["service"] == health.SERVICE
    routes = {"ditcast-generate", "ditcast-configure"}
    assert {target["name"] for target in policy["targetRefs"]} == routes
