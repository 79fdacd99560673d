"""What it takes to make an output again, gathered from whoever knows a part of it."""

from __future__ import annotations

from ditcast_runtime.config import Configuration, EngineConfig
from ditcast_runtime.generation import OutputDigest, Parameters, Receipt
from ditcast_runtime.messages import Facts


def make_receipt(
    config: EngineConfig,
    facts: Facts,
    configuration: Configuration,
    parameters: Parameters,
    sigmas: tuple[float, ...],
    outputs: tuple[OutputDigest, ...],
) -> Receipt:
    """Give the receipt of a generation that ran with these facts under this configuration."""
    return Receipt(
        parameters=parameters,
        model_id=config.model_id,
        model_revision=facts.model_revision or None,
        weights_digest=facts.weights_digest,
        library_versions=facts.library_versions,
        world_size=config.world_size,
        threads_per_rank=facts.threads,
        device=facts.device_name,
        dtype=facts.dtype,
        configuration=configuration,
        sigmas_used=sigmas,
        outputs=outputs,
        deterministic=facts.deterministic,
    )
