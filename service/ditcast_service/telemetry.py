"""What watches the service from within, as far as it was asked for: figures and traces.

Neither library is imported where nobody asked, and then nothing is watched at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import structlog

from ditcast_runtime.delivery import Encode
from ditcast_runtime.engine import Engine
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.observer import Observer, Observers
from ditcast_runtime.preview_delivery import EncodePreview
from ditcast_runtime.settings import Problem
from ditcast_service.checks import tls_files
from ditcast_service.config import ServerConfig
from ditcast_service.encoding import encode
from ditcast_service.interceptors import RpcBegan
from ditcast_service.preview_encoding import encode_preview

if TYPE_CHECKING:  # Imported where it is asked for.
    from ditcast_service.metrics import Metrics

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"

_log = structlog.get_logger(__name__)


class Telemetry:
    """Everything that the parts of the service are handed to be watched by.

    Attributes:
        encode: the encoder of outputs, watched.
        encode_preview: the encoder of previews, watched.
    """

    def __init__(self, config: ServerConfig, environment: Mapping[str, str]) -> None:
        """Prepare what the configuration, or OpenTelemetry's own variables, ask for.

        Raises:
            ConfigError: what they ask for cannot be had.
        """
        self.encode: Encode = encode
        self.encode_preview: EncodePreview = encode_preview
        self._config = config
        self._observers: list[Observer] = []
        self._watching: list[RpcBegan] = []
        self._metrics: Metrics | None = None
        self._engine: Engine | None = None
        self._closing = contextlib.ExitStack()
        if config.metrics_listen:
            self._measure()
        if wants_traces(environment):
            self._trace()

    @property
    def observer(self) -> Observer:
        """Who is told what happens in the engine."""
        return Observers(*self._observers)

    @property
    def watching(self) -> Sequence[RpcBegan]:
        """Who is told of each RPC."""
        return self._watching

    async def listen(self) -> None:
        """Open what is fetched from outside.

        Raises:
            ConfigError: its address cannot be bound.
        """
        if self._metrics is None:
            return
        from ditcast_service.metrics_endpoint import MetricsEndpoint  # noqa: PLC0415 (see above)

        endpoint = MetricsEndpoint(self._metrics.families.registry, self._look)
        address = await endpoint.listen(self._config.metrics_listen, tls_files(self._config))
        self._closing.callback(endpoint.close)
        _log.info("metrics", address=address)

    def look_at(self, engine: Engine) -> None:
        """Take from now on what is a state of the engine from this one."""
        self._engine = engine

    def close(self) -> None:
        """Stop listening, and pass on what is not yet passed on."""
        self._closing.close()

    def _measure(self) -> None:
        from prometheus_client import disable_created_metrics  # noqa: PLC0415 (see above)

        from ditcast_service.metrics import Metrics  # noqa: PLC0415 (see above)

        # One more series for each of ours, which says when it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._metrics = metrics = Metrics(self._config)
        self._observers.append(metrics)
        self._watching.append(metrics.rpc_began)
        self.encode = metrics.timed(encode)
        self.encode_preview = metrics.timed_preview(encode_preview)

    def _trace(self) -> None:
        if find_spec("opentelemetry") is None:
            reason = "it asks for traces, which need: pip install 'ditcast[otel]'"
            raise ConfigError((Problem(_ENDPOINT, reason),))
        from ditcast_service.tracing import Tracing  # noqa: PLC0415 (see above)

        tracing = Tracing()
        self._observers.append(tracing)
        self._watching.append(tracing.rpc_began)
        self._closing.callback(tracing.close)

    def _look(self) -> None:
        if self._metrics is not None and self._engine is not None:
            self._metrics.look(self._engine)


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Say whether OpenTelemetry's variables name an endpoint for traces, and do not forbid them.

    Raises:
        ConfigError: they want another protocol than the one that the extra brings.
    """
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    none = environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    if off or none or not _of_traces(environment, _ENDPOINT):
        return False
    protocol = _of_traces(environment, _PROTOCOL)
    if protocol not in ("", "grpc"):
        raise ConfigError((Problem(_PROTOCOL, f"{protocol!r:.40} is not grpc"),))
    return True


def _of_traces(environment: Mapping[str, str], name: str) -> str:
    """Read a variable of OTLP, of which traces may have one of their own."""
    own = name.replace("_OTLP_", "_OTLP_TRACES_")
    return environment.get(own) or environment.get(name, "")
