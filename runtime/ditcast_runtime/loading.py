"""Load a pipeline's weights into memory: safetensors alone, no remote code, and say how far it is.

`source` has fetched and read them; `placement` puts them where they run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ditcast_runtime.settings import LoadingSettings
from ditcast_runtime.source import Report
from ditcast_runtime.weights import weight_files


def load(
    folder: Path, variant: str, settings: LoadingSettings, device: torch.device, report: Report
) -> Any:
    """Give the pipeline, in main memory; `report` hears of each component."""
    transformers.utils.logging.disable_progress_bar()
    # What it warns of in a generation is refused before, or a warning event of the generation.
    diffusers.utils.logging.set_verbosity_error()
    files = weight_files(folder, variant)
    sizes = {name: sum(file.stat().st_size for file in group) for name, group in files.items()}
    with _component_progress(sizes, report):
        return DiffusionPipeline.from_pretrained(
            folder,
            variant=variant or None,
            torch_dtype=_dtypes(settings, device),
            use_safetensors=True,
            local_files_only=True,
        )


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


def _dtypes(settings: LoadingSettings, device: torch.device) -> Any:
    """Give one type for all, or each component's, in the form that diffusers takes."""
    usual = resolve_dtype(settings.dtype, device)
    if not settings.component_dtypes:
        return usual
    own = {name: resolve_dtype(dtype, device) for name, dtype in settings.component_dtypes}
    return {"default": usual, **own}


class _Progress:
    """Turns diffusers' own bars, of components and of one component's files, into reports."""

    def __init__(self, sizes: Mapping[str, int], report: Report) -> None:
        self._sizes = sizes
        self._report = report
        self._total = sum(sizes.values())
        self._done = 0
        self._name = ""

    def bar(self, items: Any, **_: Any) -> Iterator[Any]:
        """Stand in for tqdm."""
        listed = list(items)
        # Components are pairs of a name and a class; files of one of them are paths.
        return self._components(listed) if isinstance(listed[0], tuple) else self._files(listed)

    def _components(self, items: list[Any]) -> Iterator[Any]:
        for index, item in enumerate(items, start=1):
            self._name = item[0]
            stage = f"loading {self._name} ({index} of {len(items)})"
            self._report(stage, self._done, self._total)
            yield item
            self._done += self._sizes.get(self._name, 0)

    def _files(self, items: list[Any]) -> Iterator[Any]:
        size = self._sizes.get(self._name, 0)
        for index, item in enumerate(items):
            stage = f"loading {self._name}, file {index + 1} of {len(items)}"
            self._report(stage, self._done + size * index // len(items), self._total)
            yield item


@contextlib.contextmanager
def _component_progress(sizes: Mapping[str, int], report: Report) -> Iterator[None]:
    """Report while diffusers loads, in place of its bars on the terminal."""
    logging = diffusers.utils.logging
    original = logging.tqdm
    logging.tqdm = _Progress(sizes, report).bar  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.tqdm = original
