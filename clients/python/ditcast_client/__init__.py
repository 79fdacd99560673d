"""Client of ditcast, a gRPC service for diffusers pipelines accelerated by cache-dit.

    async with Client("127.0.0.1:50051") as client:
        result = await client.generate(prompt="a red cup", width=128, height=128).result()
        result.outputs[0].save("cup.png")

`Client` is asynchronous, `BlockingClient` the same for callers without an event loop. Messages are
those of the contract, `ditcast.v1`. Importing this package imports neither torch nor the server.
"""

from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast_client.blocking import BlockingClient, BlockingGeneration
from ditcast_client.client import Client
from ditcast_client.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    DigestMismatch,
    DitcastError,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PreconditionViolation,
    ResourceExhausted,
    TransportBroken,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from ditcast_client.generation import Generation
from ditcast_client.images import input_image
from ditcast_client.outputs import Output
from ditcast_client.receipts import Difference, UnusableReceipt, read_receipt, write_receipt
from ditcast_client.replaying import OutputComparison, Replay, compare, replay
from ditcast_client.result import Result

__all__ = [
    "Aborted",
    "AlreadyExists",
    "BlockingClient",
    "BlockingGeneration",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "Difference",
    "DigestMismatch",
    "DitcastError",
    "FailedPrecondition",
    "FieldViolation",
    "GenerateRequest",
    "Generation",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "Output",
    "OutputComparison",
    "PermissionDenied",
    "PreconditionViolation",
    "Replay",
    "ResourceExhausted",
    "Result",
    "TransportBroken",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnusableReceipt",
    "compare",
    "input_image",
    "read_receipt",
    "replay",
    "write_receipt",
]
