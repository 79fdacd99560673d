"""Submissions and the events of a generation, for tests that need no ranks."""

from __future__ import annotations

from typing import Any

from ditcast_runtime.accepted import Generation, Submission
from ditcast_runtime.events import EventKind, OutputChunk, StepCompleted
from ditcast_runtime.generation import OutputOptions, Parameters
from ditcast_runtime.settings import CacheSettings

PARAMETERS = Parameters(
    prompt="a red cup",
    negative_prompt=None,
    width=128,
    height=128,
    num_inference_steps=4,
    guidance_scale=None,
    true_cfg_scale=None,
    seed=7,
    num_images=1,
    sigmas=(),
    pipeline_kwargs={},
    output=OutputOptions(),
    cache=CacheSettings(),
)


def submission(request_id: str = "mine", **more: Any) -> Submission:  # noqa: ANN401 (its fields)
    """Make a settled request."""
    fields: dict[str, Any] = {
        "digest": b"content",
        "parameters": PARAMETERS,
        "revision": 1,
        "settle": lambda: (PARAMETERS, ()),
        **more,
    }
    return Submission(request_id=request_id, **fields)


def generation(request_id: str = "mine", silence: float = 10.0, **more: Any) -> Generation:  # noqa: ANN401
    """Make an accepted generation whose abandonment is noted in `abandoned`."""
    return Generation(submission(request_id, **more), abandoned.append, silence, serial=1)


abandoned: list[Generation] = []
"""Those that their last reader left, as `generation` made them."""


def step(number: int = 1) -> StepCompleted:
    """Make a step."""
    return StepCompleted(
        step=number,
        total_steps=4,
        timestep=1.0,
        sigma=None,
        step_duration=0.1,
        estimated_remaining=0.1,
        transformers=(),
    )


def chunk(data: bytes | memoryview, index: int = 0) -> OutputChunk:
    """Make a chunk that is a whole output."""
    return OutputChunk(
        output_index=index, media_type="image/png", total_bytes=len(data), offset=0, data=data
    )


def shown(kind: EventKind) -> EventKind | bytes:
    """Give what of an event a reader can tell apart: of a chunk, its bytes."""
    return bytes(kind.data) if isinstance(kind, OutputChunk) else kind
