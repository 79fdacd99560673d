"""The images and the compose file: linted, and what they start is what this version takes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.flags import expect_client_command, serve_config

from ditcast_runtime.errors import ConfigError
from ditcast_service import lifecycle

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """Read a compose file's services."""
    services: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text("utf-8"))["services"]
    return services


def instruction(name: str) -> str:
    """Give the rest of the last instruction of this name in the server's image, on one line."""
    joined = re.sub(r"(\n\s*#.*)+", "", DOCKERFILE).replace("\\\n", " ")
    found: list[str] = re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)
    return found[-1]


def environment() -> dict[str, str]:
    """Give the variables that the server's image sets."""
    return dict(each.split("=", 1) for each in shlex.split(instruction("ENV")))


@pytest.mark.parametrize("name", ["Dockerfile", "page.Dockerfile"])
def test_hadolint_finds_nothing(name: str) -> None:
    """What is ignored says so beside it."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DEPLOY / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_nobodys_root() -> None:
    """A numeric user: Kubernetes cannot tell whether a name is root."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instruction("USER"))


def test_the_image_copies_only_what_its_context_has() -> None:
    """Each COPY from the tree is let in by the ignore file, and exists."""
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8")
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}\n" in allowed, source


def test_the_image_does_not_open_without_tls_unless_told() -> None:
    """`docker run ditcast` alone refuses, and says what it takes; with the word it would serve."""
    variables = {name: value for name, value in environment().items() if "DITCAST" in name}
    arguments = json.loads(instruction("CMD"))
    with pytest.raises(ConfigError, match="--insecure"):
        serve_config(arguments, variables)
    config = serve_config(arguments, variables | {"DITCAST_INSECURE": "true"})
    assert f"unix:{environment()['DITCAST_ADDRESS'].removeprefix('unix:')}" in config.listen


def test_the_images_probe_is_a_command_of_ours() -> None:
    """HEALTHCHECK runs `ditcast health`, against the socket that the image listens on."""
    command = json.loads(instruction("HEALTHCHECK").partition(" CMD ")[2])
    assert command[:2] == ["ditcast", "health"]
    expect_client_command(command)


def test_the_composed_server_starts_with_flags_that_there_are() -> None:
    """With the image's variables, as the container has them."""
    variables = {name: value for name, value in environment().items() if "DITCAST" in name}
    config = serve_config(compose()["server"]["command"], variables)
    least = config.grace + config.shutdown_timeout + lifecycle._LAST_WORDS_SECONDS
    assert float(compose()["server"]["stop_grace_period"].removesuffix("s")) >= least


@pytest.mark.parametrize("service", ["server", "envoy", "page", "prometheus"])
def test_composed_containers_may_little(service: str) -> None:
    """Read-only, no capabilities, no way to get more; images of a named version."""
    found = compose()[service]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert "build" in found or re.search(r":v?\d+\.\d+", found["image"])


def test_the_gpu_file_changes_a_service_that_there_is() -> None:
    """An override of nothing would be a service of its own."""
    assert compose("compose.gpu.yaml").keys() <= compose().keys()


def test_envoy_knows_the_composed_services_by_name_and_port() -> None:
    """Its clusters are services of the compose file, at the ports that those listen on."""
    envoy = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text("utf-8"))
    found = {
        (address["address"], address["port_value"])
        for cluster in envoy["static_resources"]["clusters"]
        for group in cluster["load_assignment"]["endpoints"]
        for endpoint in group["lb_endpoints"]
        for address in [endpoint["endpoint"]["address"]["socket_address"]]
    }
    # nginx-unprivileged listens on 8080.
    assert found == {("server", int(instruction("EXPOSE"))), ("page", 8080)}
    assert {name for name, _ in found} <= compose().keys()
