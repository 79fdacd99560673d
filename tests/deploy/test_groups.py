"""A group over several hosts, by LeaderWorkerSet: service, ranks and manifest agree.

There is no schema of LeaderWorkerSet here; its two pods are held to that of a Pod.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from tests.deploy.flags import file_at, serve_config
from tests.deploy.manifests import KUBERNETES, Manifest, find, render
from tests.deploy.test_kubernetes import VERSION

from ditcast_runtime import attach
from ditcast_service import lifecycle
from ditcast_service.config import ServerConfig

MANIFESTS = render(KUBERNETES / "overlays" / "two-hosts")
GROUP: Manifest = find(MANIFESTS, "LeaderWorkerSet", "ditcast-group")["spec"]
TEMPLATE = GROUP["leaderWorkerTemplate"]
LEADER, WORKER = (TEMPLATE[f"{role}Template"] for role in ("leader", "worker"))
LEADER_ADDRESS = "ditcast-group-0.ditcast-group.default"


def container(template: Manifest, name: str) -> dict[str, Any]:
    """Give a pod's container."""
    [found] = [each for each in template["spec"]["containers"] if each["name"] == name]
    return dict(found)


def expand(words: list[str]) -> list[str]:
    """Put variables in as Kubernetes does, with what LeaderWorkerSet and the manifest set."""
    values = {
        "LWS_LEADER_ADDRESS": LEADER_ADDRESS,
        "LWS_GROUP_SIZE": str(TEMPLATE["size"]),
        "POD_IP": "10.0.0.2",
    }
    return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in words]


def ranks(template: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse how ranks are started: torchrun's own arguments, and those of attaching."""
    from torch.distributed.run import get_args_parser

    program, *arguments = expand(container(template, "ranks")["command"])
    assert program == "torchrun"
    parsed = vars(get_args_parser().parse_args(arguments))
    assert (parsed["module"], parsed["training_script"]) == (True, "ditcast_runtime.attach")
    return parsed, vars(attach._parser().parse_args(parsed["training_script_args"]))


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    """Give the service's settings, with the paths of its mounts led to files of ours."""
    file_at(tmp_path, "secret", "x" * 44)
    for name, content in find(MANIFESTS, "ConfigMap")["data"].items():
        file_at(tmp_path, name, content.replace("/etc/ditcast", str(tmp_path)))
    mounts = {"/etc/ditcast": tmp_path, "/group": tmp_path, "/ranks": tmp_path}
    service = container(LEADER, "ditcast")
    assert mounts.keys() <= {mount["mountPath"] for mount in service["volumeMounts"]}
    arguments = service["args"]
    for path, folder in mounts.items():
        arguments = [each.replace(f"{path}/", f"{folder}/") for each in arguments]
    return serve_config(arguments)


@pytest.mark.parametrize("template", [LEADER, WORKER], ids=["leader", "worker"])
def test_each_pod_is_valid(template: Manifest) -> None:
    """Strictly, as a Pod; volumes are there that are mounted, and nobody is root."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": template["spec"]}
    kubernetes_validate.validate(pod, VERSION, strict=True)
    mounted = {
        mount["name"] for each in template["spec"]["containers"] for mount in each["volumeMounts"]
    }
    assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["enableServiceLinks"] is False
    for each in template["spec"]["containers"]:
        assert each["image"] == "ditcast:0.1.0"
        assert each["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_set_has_such_fields_as_there_are() -> None:
    """By hand, from the types of leaderworkerset.x-k8s.io/v1."""
    assert GROUP.keys() == {"replicas", "startupPolicy", "leaderWorkerTemplate"}
    assert TEMPLATE.keys() == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
    assert GROUP["startupPolicy"] == "LeaderCreated"
    assert TEMPLATE["restartPolicy"] == "None"


def test_the_sets_own_service_is_not_taken_away() -> None:
    """It makes one of its name, which knows a leader that is not ready, unless there is one."""
    services = {each["metadata"]["name"] for each in MANIFESTS if each["kind"] == "Service"}
    assert services == {"ditcast"}
    assert "ditcast-group" not in services


def test_ranks_and_service_agree(config: ServerConfig, tmp_path: Path) -> None:
    """On how many there are, where they attach, by which socket, and with which secret."""
    socket, control = config.control_listen
    port = control.rpartition(":")[2]
    for template, service in (
        (LEADER, socket.replace(str(tmp_path), "/ranks")),
        (WORKER, f"{LEADER_ADDRESS}:{port}"),
    ):
        torchrun, attaching = ranks(template)
        assert attaching["service"] == [service]
        assert attaching["secret_file"] == Path("/group/secret")
        each = int(torchrun["nproc_per_node"])
        assert int(torchrun["nnodes"]) * each == config.world_size
        assert torchrun["max_restarts"] > 0
        for amounts in container(template, "ranks")["resources"].values():
            assert int(amounts["nvidia.com/gpu"]) == each
        for path in ("/group", "/dev/shm", "/tmp", "/models"):  # noqa: S108 (mounts)
            mounts = container(template, "ranks")["volumeMounts"]
            assert path in {mount["mountPath"] for mount in mounts}
    [port_of_control] = [
        each["containerPort"]
        for each in container(LEADER, "ditcast")["ports"]
        if each["name"] == "control"
    ]
    assert port_of_control == int(port)
    parallelism = config.acceleration.parallelism
    assert parallelism is not None
    assert parallelism.world_size == config.world_size


def test_one_host_holds_the_rendezvous() -> None:
    """The leader, at whose address both look for it; the rest of the command is the same."""
    found = [ranks(template)[0] for template in (LEADER, WORKER)]
    assert [each["rdzv_conf"] for each in found] == ["is_host=1", "is_host=0"]
    same = {"rdzv_conf": "", "training_script_args": []}
    assert {**found[0], **same} == {**found[1], **same}
    assert found[0]["rdzv_endpoint"].rpartition(":")[0] == LEADER_ADDRESS


def test_who_serves_is_found_and_who_only_computes_is_not() -> None:
    """Service and disruption budget see the leader; the group's policy sees all of it."""
    leader, worker = (template["metadata"]["labels"] for template in (LEADER, WORKER))
    served = find(MANIFESTS, "Service")["spec"]["selector"]
    assert served.items() <= leader.items()
    assert not served.items() <= worker.items()
    group = find(MANIFESTS, "NetworkPolicy", "ditcast-group")["spec"]
    chosen = group["podSelector"]["matchLabels"]
    assert chosen.items() <= leader.items()
    assert chosen.items() <= worker.items()
    assert group["ingress"] == [{"from": [{"podSelector": {"matchLabels": chosen}}]}]
    assert {"to": [{"podSelector": {"matchLabels": chosen}}]} in group["egress"]


def test_ranks_outlast_the_service_that_drains(config: ServerConfig) -> None:
    """All containers are told to stop at once; without their ranks no generation would end."""
    service = container(LEADER, "ditcast")
    ending = config.grace + config.shutdown_timeout + lifecycle._LAST_WORDS_SECONDS
    least = service["lifecycle"]["preStop"]["sleep"]["seconds"] + ending
    for template in (LEADER, WORKER):
        [sleep, seconds] = container(template, "ranks")["lifecycle"]["preStop"]["exec"]["command"]
        assert sleep == "sleep"
        assert least <= int(seconds) < template["spec"]["terminationGracePeriodSeconds"]


def test_it_probes_as_the_deployment_does() -> None:
    """What serves is the same, wherever its ranks are."""
    [deployed] = find(render(KUBERNETES / "base"), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    service = container(LEADER, "ditcast")
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert service[name] == deployed[name]
