"""What is watched is what was asked for, and nothing else is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ditcast_runtime.errors import ConfigError
from ditcast_service.telemetry import wants_traces

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({ENDPOINT: "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True),
        ({ENDPOINT: "http://collector:4317", "OTEL_SDK_DISABLED": "true"}, False),
        ({ENDPOINT: "http://collector:4317", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_SERVICE_NAME": "a"}, False),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], *, wanted: bool) -> None:
    """An endpoint switches traces on, and what forbids them off."""
    assert wants_traces(environment) is wanted


def test_another_protocol_is_refused() -> None:
    """Rather than sent to a port that does not speak it."""
    variables = {
        ENDPOINT: "http://collector:4318",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }
    with pytest.raises(ConfigError, match="is not grpc"):
        wants_traces(variables)


def test_nothing_is_imported_that_nobody_asked_for() -> None:
    """Without an address and an endpoint neither library is there."""
    code = """
import sys
from ditcast_service import lifecycle
from ditcast_service.config import ServerConfig
from ditcast_service.telemetry import Telemetry
made = Telemetry(ServerConfig(), {})
assert list(made.watching) == []
print(*{name.partition(".")[0] for name in sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"prometheus_client", "opentelemetry"} & set(done.stdout.split())
