"""How a generation ended, in the words that its readers are told: for figures and traces."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2

from ditcast_runtime.errors import RuntimeFailure
from ditcast_service import status


def ending(failure: RuntimeFailure | None) -> tuple[str, str]:
    """Give the code and the reason with which a generation's readers are told of its end."""
    if failure is None:
        return grpc.StatusCode.OK.name, ""
    made = status.status_of(failure)
    info = error_details_pb2.ErrorInfo()
    made.details[0].Unpack(info)
    return status.code_of(made).name, info.reason
