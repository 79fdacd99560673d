"""How a pipeline is loaded, placed and compiled, and what of it cannot be; no torch, no file.

`check_loading` judges with what is known at the time: the words alone, then the components, the
device and how the pipeline is split over the ranks.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ditcast_runtime.settings.parallelism import ParallelismSettings
from ditcast_runtime.settings.problems import Findings, Problem, nearest, one_per_field

DTYPES: Final = ("auto", "float32", "bfloat16", "float16")


class Offload(enum.StrEnum):
    """What of the weights waits in main memory while it is not needed."""

    NONE = "none"
    MODEL = "model"
    SEQUENTIAL = "sequential"
    LAYERWISE = "layerwise"


class Compile(enum.StrEnum):
    """What torch.compile is called on."""

    NONE = "none"
    REGIONAL = "regional"
    WHOLE = "whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadingSettings:
    """How the weights are loaded, placed on the device and compiled; fixed when the ranks load."""

    dtype: str = "auto"
    """Number type of the weights: float32, bfloat16 or float16. auto: float32 on cpu, bfloat16
    elsewhere."""
    component_dtypes: tuple[tuple[str, str], ...] = ()
    """Number types of single components, `NAME=DTYPE`, such as vae=float32, by their names in
    model_index.json; words as for dtype. Repeat the flag, or give a mapping in the file."""
    offload: Offload = Offload.NONE
    """What waits in main memory while it is not needed: none; model: whole components, each on the
    device while it runs; sequential: single modules; layerwise: the blocks of the transformers. The
    first two need an accelerator."""
    vae_tiling: bool = False
    """Decode large pictures in tiles, for less memory."""
    vae_slicing: bool = False
    """Decode the pictures of a batch one by one, for less memory."""
    compile: Compile = Compile.NONE
    """What torch.compile is called on: none; regional: each repeated block of the transformers;
    whole: the transformers. Compiling belongs to the warm-up."""
    channels_last: bool = False
    """Keep the channels of convolutions last in memory."""


def check_loading(
    settings: LoadingSettings,
    *,
    parallelism: ParallelismSettings,
    prefix: str = "loading",
    components: Collection[str] | None = None,
    faults: Mapping[str, str] | None = None,
    accelerator: bool = True,
) -> tuple[Problem, ...]:
    """Find everything that keeps these settings from being loaded.

    Args:
        settings: What to check.
        parallelism: How the pipeline is split over the ranks, resolved.
        prefix: Path of the settings in the request.
        components: The components that have weights. None: not known yet.
        faults: Why the pipeline cannot do it, by `field` or `field=value`. None: not known yet.
        accelerator: Whether the ranks run on more than a CPU.
    """
    findings = Findings(prefix)
    findings.choice("dtype", settings.dtype, DTYPES)
    _check_components(settings, findings, components)
    if not accelerator and settings.offload in {Offload.MODEL, Offload.SEQUENTIAL}:
        findings.refuse(
            "offload",
            f"{settings.offload} offload needs an accelerator to move weights to",
            "unsupported",
        )
    _check_split(settings, findings, parallelism)
    if settings.compile is not Compile.NONE:
        _check_compile(settings, findings, parallelism, accelerator=accelerator)
    for asked, reason in (faults or {}).items():
        name, _, value = asked.partition("=")
        if getattr(settings, name) == (value or True):
            findings.refuse(name, reason, "unsupported")
    return one_per_field(findings.problems)


def _check_components(
    settings: LoadingSettings, findings: Findings, components: Collection[str] | None
) -> None:
    """Refuse number types that are none, and those of components that there are not."""
    for name, dtype in settings.component_dtypes:
        if dtype not in DTYPES:
            reason = f"{dtype!r:.40} is none of {', '.join(DTYPES)}{nearest(dtype, DTYPES)}"
            findings.refuse("component_dtypes", f"{name}: {reason}")
        elif components is not None and name not in components:
            has = ", ".join(sorted(components))
            reason = f"the pipeline has no component {name!r:.40} with weights; it has {has}"
            findings.refuse("component_dtypes", f"{reason}{nearest(name, components)}")


def _check_compile(
    settings: LoadingSettings,
    findings: Findings,
    parallelism: ParallelismSettings,
    *,
    accelerator: bool,
) -> None:
    """Refuse to compile what cannot be traced."""
    if settings.offload is Offload.SEQUENTIAL:
        findings.refuse("compile", "it cannot be combined with sequential offload: use model")
    if parallelism.tensor_parallel_degree > 1:
        degree = parallelism.tensor_parallel_degree
        reason = f"it cannot be combined with tensor_parallel_degree {degree}"
        findings.refuse(
            "compile", f"{reason}: split weights cannot be traced where lengths vary", "unsupported"
        )
    if parallelism.context_parallel_degree > 1 and not accelerator:
        name = "ulysses_degree" if parallelism.ulysses_degree > 1 else "ring_degree"
        degree = max(parallelism.ulysses_degree, parallelism.ring_degree)
        reason = f"it cannot be combined with {name} {degree} on a CPU"
        findings.refuse(
            "compile", f"{reason}: how the ranks exchange sizes cannot be traced", "unsupported"
        )


def _check_split(
    settings: LoadingSettings, findings: Findings, parallelism: ParallelismSettings
) -> None:
    """Refuse what needs whole weights on each rank, or a whole VAE, where they are split."""
    if parallelism.world_size == 1:
        return
    modules = parallelism.extra_parallel_modules
    split = [name for name in modules if name.endswith("vae")]
    for name in ("vae_tiling", "vae_slicing"):
        if split and getattr(settings, name):
            reason = f"it cannot be combined with {split[0]} in extra_parallel_modules"
            findings.refuse(name, f"{reason}, which has tiles of its own")
    if settings.offload is Offload.NONE:
        return
    if parallelism.tensor_parallel_degree > 1:
        degree = parallelism.tensor_parallel_degree
        reason = f"it cannot be combined with tensor_parallel_degree {degree}"
        findings.refuse("offload", f"{reason}: split weights stay where they were split")
    elif modules and settings.offload is not Offload.LAYERWISE:
        reason = f"{settings.offload} offload cannot be combined with extra_parallel_modules"
        findings.refuse("offload", f"{reason} ({', '.join(modules)})")
