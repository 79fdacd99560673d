"""Load a pipeline's weights and place them on the device: safetensors alone, no remote code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ditcast_runtime.messages import Launch


def load(launch: Launch, device: torch.device, report: Callable[[str], None]) -> Any:
    """Give the pipeline, on the device; `report` hears of each stage."""
    transformers.utils.logging.disable_progress_bar()
    # What it warns of in a generation is refused before, or a warning event of the generation.
    diffusers.utils.logging.set_verbosity_error()
    with _component_progress(report):
        pipe = DiffusionPipeline.from_pretrained(
            launch.model,
            revision=launch.model_revision or None,
            torch_dtype=resolve_dtype(launch.dtype, device),
            use_safetensors=True,
        )
    report("placing on the device")
    pipe.to(device)
    return pipe


def resolve_device(name: str, local_rank: int) -> torch.device:
    """Turn the configured device into this rank's own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn the configured dtype into torch's; auto is float32 on cpu, bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


@contextlib.contextmanager
def _component_progress(report: Callable[[str], None]) -> Iterator[None]:
    """Report each component while diffusers loads it, in place of its terminal bar."""
    logging = diffusers.utils.logging
    original = logging.tqdm

    def narrate(items: Any, **_: Any) -> Iterator[Any]:
        listed = list(items)
        for index, item in enumerate(listed, start=1):
            name = item[0] if isinstance(item, tuple) else item
            report(f"loading {name} ({index} of {len(listed)})")
            yield item

    logging.tqdm = narrate  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.tqdm = original
