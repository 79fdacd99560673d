"""What is in the wheel, and what an install of it can do with and without the server's extra."""

import configparser
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "proto/gen/ditcast": "ditcast",
    "service/ditcast_service": "ditcast_service",
    "runtime/ditcast_runtime": "ditcast_runtime",
    "clients/python/ditcast_client": "ditcast_client",
}
STARTER = "ditcast_runtime/starter/qwen-image-starter"


def python(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an environment's Python away from this tree, where the tree cannot be imported."""
    return subprocess.run(
        [environment / "bin" / "python", *arguments],
        cwd=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def client_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with the wheel and the newest of what it asks for, and nothing else."""
    environment = tmp_path_factory.mktemp("client")
    venv.create(environment, with_pip=True)
    done = python(environment, "-m", "pip", "install", "--disable-pip-version-check", str(wheel))
    assert done.returncode == 0, done.stdout + done.stderr
    return environment


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    """No committed file is left out: hatchling drops git-ignored ones without a word."""
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True
    )
    expected = {
        line.replace(root, package, 1)
        for line in listed.stdout.splitlines()
        for root, package in PACKAGES.items()
        if line.startswith(f"{root}/")
    }
    assert expected
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_the_generated_code(wheel: Path) -> None:
    """The contract's code is in the wheel with its types."""
    names = zipfile.ZipFile(wheel).namelist()
    for suffix in (".py", ".pyi"):
        assert f"ditcast/v1/generation_pb2{suffix}" in names
        assert f"ditcast/v1/diffusion_service_pb2_grpc{suffix}" in names
    assert "ditcast/py.typed" in names


def test_wheel_holds_the_starter_model(wheel: Path) -> None:
    """`ditcast serve` without --model finds its weights after a plain install."""
    names = zipfile.ZipFile(wheel).namelist()
    assert f"{STARTER}/model_index.json" in names
    weights = {Path(n).parent.name for n in names if n.startswith(STARTER) and "safetensors" in n}
    assert weights == {"text_encoder", "transformer", "vae"}


def test_wheel_offers_the_commands(wheel: Path) -> None:
    """The console script is the client's; `serve` joins it through an entry point."""
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
    entries = configparser.ConfigParser()
    entries.read_string(archive.read(name).decode())
    assert entries["console_scripts"]["ditcast"] == "ditcast_client.cli:main"
    assert entries["ditcast.commands"]["serve"] == "ditcast_service.serve:command"


def test_client_install_pulls_no_torch(client_only: Path) -> None:
    """`pip install ditcast` is small."""
    listed = python(client_only, "-m", "pip", "list", "--format=freeze").stdout
    names = {line.split("==")[0].lower() for line in listed.splitlines()}
    assert "grpcio" in names
    assert not names & {"torch", "diffusers", "transformers", "cache-dit", "cache_dit", "numpy"}


def test_contract_works_with_the_newest_grpcio_and_protobuf(client_only: Path) -> None:
    """Code made with the oldest grpcio loads under the newest, and messages survive the wire."""
    done = python(
        client_only,
        "-c",
        "from ditcast.v1 import diffusion_service_pb2 as s, diffusion_service_pb2_grpc\n"
        "request = s.GenerateRequest(prompt='a red circle', seed=2**64 - 1)\n"
        "assert s.GenerateRequest.FromString(request.SerializeToString()) == request\n"
        "assert not request.HasField('width')\n",
    )
    assert done.returncode == 0, done.stderr


def test_client_imports_without_the_server(client_only: Path) -> None:
    """The client package needs nothing that the base install lacks."""
    done = python(client_only, "-c", "import ditcast_client")
    assert done.returncode == 0, done.stderr


def test_command_shows_its_help_without_the_server(client_only: Path) -> None:
    """`ditcast --help` works in a client's install, and names the client's commands."""
    done = python(client_only, "bin/ditcast", "--help")
    assert done.returncode == 0, done.stderr
    for command in ("generate", "info", "cancel", "serve"):
        assert command in done.stdout


def test_serve_without_the_extra_says_what_to_install(client_only: Path) -> None:
    """`ditcast serve` in a client's install is a user's slip: exit code 2, and the remedy."""
    done = python(client_only, "bin/ditcast", "serve")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ditcast[server]" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_is_that_of_the_project() -> None:
    """The installed metadata and pyproject.toml agree: the version stands in one place."""
    code = "import importlib.metadata; print(importlib.metadata.version('ditcast'))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f'version = "{found.stdout.strip()}"' in (ROOT / "pyproject.toml").read_text()
