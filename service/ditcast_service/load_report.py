"""How full the service is, in the trailers of each Generate: a load report as ORCA has them.

Proxies that balance by it (Envoy's client_side_weighted_round_robin, gRPC's weighted_round_robin)
weigh each instance by its rate over its utilisation.
"""

from __future__ import annotations

import struct

KEY = "endpoint-load-metrics-bin"
"""Where ORCA's reports stand: xds.data.orca.v3.OrcaLoadReport, serialised."""

_RPS_FRACTIONAL = 6
_APPLICATION_UTILIZATION = 9
"""Numbers of two fields of that message, both doubles."""

_DOUBLE = 1
"""The wire type of a double."""

_LEAST = 0.001
"""A utilisation of 0 counts as none reported, and an idle instance would get no weight."""

_RATE = 1.0
"""The same for all: a rate that follows from an instance's share would feed back on the share."""


def trailers(utilization: float) -> tuple[tuple[str, bytes], ...]:
    """Report how full the service is: 0 idle, 1 where one more would be refused."""
    return ((KEY, encode(max(_LEAST, utilization), _RATE)),)


def encode(utilization: float, rate: float) -> bytes:
    """Serialise the message: two doubles are no reason for a package with all of xDS in it."""
    fields = ((_RPS_FRACTIONAL, rate), (_APPLICATION_UTILIZATION, utilization))
    return b"".join(struct.pack("<Bd", number << 3 | _DOUBLE, value) for number, value in fields)
