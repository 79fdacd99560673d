"""What it takes to make an output again, gathered from whoever knows a part of it."""

from __future__ import annotations

from ditcast_runtime.accepted import Generation
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.generation import OutputDigest, Receipt
from ditcast_runtime.messages import Facts


def make_receipt(
    config: EngineConfig,
    facts: Facts,
    generation: Generation,
    sigmas: tuple[float, ...],
    outputs: tuple[OutputDigest, ...],
    batch_size: int = 1,
) -> Receipt:
    """Give the receipt of a generation that ran with these facts."""
    if generation.configuration is None:
        raise RuntimeError("what never ran has no receipt")
    return Receipt(
        parameters=generation.parameters,
        model_id=config.model_id,
        model_revision=facts.model_revision or None,
        weights_digest=facts.weights_digest,
        library_versions=facts.library_versions,
        world_size=config.world_size,
        threads_per_rank=facts.threads,
        device=facts.device_name,
        dtype=facts.dtype,
        configuration=generation.configuration,
        sigmas_used=sigmas,
        outputs=outputs,
        # Beside others a call has other shapes, and a cache decides for all of them at once.
        deterministic=facts.deterministic and batch_size == 1,
        group=generation.group,
        batch_size=batch_size,
    )
