"""What importing a part pulls in, and what it costs."""

import subprocess
import sys

import pytest

RANKS_ONLY = {"torch", "diffusers", "transformers", "cache_dit"}


def modules_after(statement: str) -> set[str]:
    """Give the top-level modules that are loaded after a statement, in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def seconds(statement: str) -> float:
    """Time a statement in fresh interpreters, and give the best of five."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    runs = (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        for _ in range(5)
    )
    return min(float(run.stdout) for run in runs)


@pytest.mark.parametrize("module", ["ditcast_service.serve", "ditcast_service.servicer"])
def test_importing_the_service_leaves_torch_out(module: str) -> None:
    """The process that answers callers never loads what the ranks need."""
    assert not modules_after(f"import {module}") & RANKS_ONLY


@pytest.mark.parametrize("module", ["ditcast_runtime.engine", "ditcast_runtime.group"])
def test_importing_the_engine_leaves_torch_protobuf_and_grpc_out(module: str) -> None:
    """The torch-free half of the engine is just that, and knows no wire format of callers."""
    assert not modules_after(f"import {module}") & (RANKS_ONLY | {"google", "grpc"})


def test_importing_the_client_leaves_the_server_out() -> None:
    """The client runs on a machine that has none of the server's packages."""
    server = {"ditcast_service", "ditcast_runtime", "yaml", "msgspec", "numpy", "PIL", "structlog"}
    assert not modules_after("import ditcast_client") & (RANKS_ONLY | server)


def test_importing_the_client_is_quick() -> None:
    """The client costs at most 0.3 s beyond what grpc itself costs."""
    assert seconds("import ditcast_client") - seconds("import grpc.aio") < 0.3
