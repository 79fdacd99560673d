"""The public surface: a name that goes away, or comes by accident, is noticed here."""

import ditcast_client


def test_public_names_are_pinned() -> None:
    """What callers may import is exactly this."""
    assert ditcast_client.__all__ == [
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
    assert all(hasattr(ditcast_client, name) for name in ditcast_client.__all__)
