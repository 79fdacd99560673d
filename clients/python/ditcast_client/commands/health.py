"""`ditcast health`."""

from __future__ import annotations

import argparse
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ditcast_client import exits
from ditcast_client.commands.command import access, add_address

_STATUSES: Final = health_pb2.HealthCheckResponse.ServingStatus


class Health:
    """Ask whether a server takes generations: exit code 0 if it does, 3 if not. Made for probes."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--service",
            default="",
            metavar="NAME",
            help="liveness: whether the process works, also while it loads; default: all of it",
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=3.0,
            metavar="SECONDS",
            help="how long the answer may take; default: %(default)s",
        )
        add_address(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Ask and say the status in one word."""
        credentials = access(options)["credentials"]
        with (
            grpc.secure_channel(options.address, credentials)
            if credentials
            else grpc.insecure_channel(options.address)
        ) as channel:
            request = health_pb2.HealthCheckRequest(service=options.service)
            # Its types say nothing of its calls, nor of the values of its enum.
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                status = stub.Check(request, timeout=options.timeout).status
            except grpc.RpcError as err:
                return _failed(err)
        print(_STATUSES.Name(status))
        return exits.DONE if status == health_pb2.HealthCheckResponse.SERVING else exits.UNAVAILABLE


def _failed(error: object) -> int:
    """Say what kept the answer away: a name that the server does not have is a slip of the caller.

    No token is sent, and none is needed: probes have no credentials.
    """
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    print(f"NO ANSWER: {code.name}")
    return exits.REFUSED if code is grpc.StatusCode.NOT_FOUND else exits.UNAVAILABLE
