"""Which generations can be made in one call of the pipeline: those whose batch keys are equal."""

from __future__ import annotations

from collections.abc import Hashable

from ditcast_runtime.accepted import Generation
from ditcast_runtime.generation import KeywordValue, OutputFormat


def batch_key(generation: Generation) -> Hashable | None:
    """Give what has to be equal for two generations to share a call; None: it runs alone.

    In it is all that a call has once for all of its rows. Prompts and seeds are each row's own, and
    what happens to the pixels afterwards is no part of the call.
    """
    submission, parameters = generation.submission, generation.parameters
    if generation.alone or submission.shadow_comparison or not submission.keeps_result:
        # What is compared or tuned would be measured with whatever ran beside it.
        return None
    if parameters.num_images > 1 or parameters.images:
        return None
    if not all(map(_is_shared, parameters.pipeline_kwargs.values())):
        return None
    return (
        generation.revision,
        parameters.negative_prompt is None,
        (parameters.width, parameters.height, parameters.num_frames, parameters.fps),
        (parameters.num_inference_steps, parameters.sigmas),
        (parameters.guidance_scale, parameters.true_cfg_scale),
        parameters.cache,
        parameters.adapters,
        parameters.output.format is OutputFormat.LATENT_SAFETENSORS,
        tuple(
            # With the type: True and 1 are equal, and a pipeline may tell them apart.
            (name, type(value), value)
            for name, value in sorted(parameters.pipeline_kwargs.items())
        ),
    )


def _is_shared(value: KeywordValue) -> bool:
    """Say whether a pipeline's own argument is one for all rows: texts and lists may be a row's."""
    return not isinstance(value, (str, list))
