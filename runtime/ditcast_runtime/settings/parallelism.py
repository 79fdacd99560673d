"""Parallelism as the domain says it: degrees, and how the ranks talk to each other.

The arithmetic of ranks is here and nowhere else: `resolve_parallelism` fills in what was left open,
`check_parallelism` says what cannot work. Defaults are cache-dit's own, except where a field says
so; a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ditcast_runtime.settings.attention import check_attention_backend
from ditcast_runtime.settings.problems import Findings, Problem, one_per_field, shown

AUTO_DEGREE: Final = 0
"""A degree that takes what the world size leaves after the others: cache-dit's "auto"."""

DEGREES = ("ulysses_degree", "ring_degree", "tensor_parallel_degree")

RING_ROTATE_METHODS = ("p2p",)
"""cache-dit documents `allgather` as well, and raises NotImplementedError for it."""

EXTRA_MODULES = re.compile(r"text_encoder(_\d+)?|(\w+_)?vae|controlnet(_\d+)?")
"""Components that cache-dit can split besides the transformer."""

ExtraValue = bool | int | float | str | None
"""What an option of one kind of model may hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelismSettings:
    """How the pipeline is split over the ranks."""

    ulysses_degree: int = 1
    """Ranks that split the attention heads, from 1. 0: auto."""
    ring_degree: int = 1
    """Ranks that pass keys and values around a ring, from 1. 0: auto."""
    tensor_parallel_degree: int = 1
    """Ranks that split the weights, from 1. 0: auto."""
    backend: str = "Auto"
    """Who splits the transformer: Auto, CACHE_DIT, Native_Diffuser (its older name),
    Native_PyTorch or Native_Hybrid, in any case of letters. Auto fits the degrees."""
    attention_backend: str | None = None
    """Attention implementation of the split transformer. None: that of the whole acceleration."""
    ulysses_anything: bool | None = None
    """Whether Ulysses takes any sequence length, as a server must. None: wherever it can
    (cache-dit's own default is False, and fails for most prompts)."""
    ulysses_float8: bool = False
    """Whether Ulysses sends 8-bit floats."""
    ulysses_async: bool = False
    """Whether Ulysses overlaps communication and computation, for the models that can."""
    ring_rotate_method: str = "p2p"
    """How a ring passes keys and values on: p2p."""
    ring_convert_to_fp32: bool = True
    """Whether a ring accumulates in 32-bit floats."""
    extra_parallel_modules: tuple[str, ...] = ()
    """Other components that are split too: text_encoder, vae, controlnet."""
    extra_parallel_kwargs: tuple[tuple[str, ExtraValue], ...] = ()
    """Options that only the split of one kind of model knows, sorted by name."""

    @property
    def context_parallel_degree(self) -> int:
        """Ranks that split the sequence: Ulysses times ring."""
        self.require_resolved()
        return self.ulysses_degree * self.ring_degree

    @property
    def equal_parts(self) -> int:
        """How many parts of equal length a sequence must fall into; 1: any length will do."""
        return 1 if self.ulysses_anything else max(1, self.context_parallel_degree)

    @property
    def world_size(self) -> int:
        """Ranks that these degrees need: the product of all three."""
        return self.context_parallel_degree * self.tensor_parallel_degree

    @property
    def is_resolved(self) -> bool:
        """Whether no degree is auto."""
        return AUTO_DEGREE not in (getattr(self, name) for name in DEGREES)

    def require_resolved(self) -> None:
        """Stop whoever would compute with an auto degree: the product would read 0."""
        if not self.is_resolved:
            raise ValueError("a degree is auto: resolve_parallelism gives the number")


SPELLINGS = {
    "ulysses_degree": "ulysses_size",
    "ring_degree": "ring_size",
    "tensor_parallel_degree": "tp_size",
}
"""Field names that cache-dit writes differently."""


def resolve_parallelism(
    settings: ParallelismSettings | None, world_size: int
) -> ParallelismSettings:
    """Fill in what was left open, for so many ranks. `check_parallelism` judges the result.

    No settings at all mean Ulysses over all ranks. The first auto degree takes what the others
    leave of the world size, at least 1; any further one, which `check_parallelism` refuses, is 1.
    """
    settings = settings or ParallelismSettings(ulysses_degree=AUTO_DEGREE)
    degrees = {name: getattr(settings, name) for name in DEGREES}
    left = world_size
    for degree in degrees.values():
        left //= max(degree, 1)
    for name in DEGREES:
        if degrees[name] == AUTO_DEGREE:
            degrees[name], left = max(left, 1), 1
    anything = settings.ulysses_anything
    if anything is None:
        # cache-dit refuses it without Ulysses, and together with a ring.
        anything = degrees["ulysses_degree"] > 1 and degrees["ring_degree"] == 1
    return replace(settings, **degrees, ulysses_anything=anything)


def parallelism_options(settings: ParallelismSettings) -> dict[str, object]:
    """Give the keyword arguments of cache-dit's ParallelismConfig, with its spellings.

    A degree of 1 is left out, as cache-dit's own default is unset. Not for settings whose world
    size is 1: cache-dit refuses a config that enables nothing.
    """
    settings.require_resolved()
    options = shared_options(settings)
    for name in DEGREES:
        if (degree := getattr(settings, name)) != 1:
            options[SPELLINGS[name]] = degree
    return options


def shared_options(settings: ParallelismSettings) -> dict[str, object]:
    """Give all options but the degrees, in cache-dit's spelling; None is left out."""
    options: dict[str, object] = {
        "backend": settings.backend,
        "attention_backend": settings.attention_backend,
        "ulysses_anything": settings.ulysses_anything,
        "ulysses_float8": settings.ulysses_float8,
        "ulysses_async": settings.ulysses_async,
        "ring_rotate_method": settings.ring_rotate_method,
        "ring_convert_to_fp32": settings.ring_convert_to_fp32,
        "extra_parallel_modules": list(settings.extra_parallel_modules),
        "extra_parallel_kwargs": dict(settings.extra_parallel_kwargs),
    }
    return {name: value for name, value in options.items() if value is not None}


def check_parallelism(
    settings: ParallelismSettings,
    *,
    world_size: int,
    num_heads: Mapping[str, int] | None = None,
    prefix: str = "parallelism",
    components: Collection[str] | None = None,
    accelerator: bool = True,
) -> tuple[Problem, ...]:
    """Find everything that keeps these settings from running on so many ranks.

    Args:
        settings: What to check; auto degrees are resolved first.
        world_size: Number of ranks.
        num_heads: Attention heads of each transformer by name. None: not known yet.
        prefix: Path of the settings in the request.
        components: Names of the pipeline's components. None: not known yet.
        accelerator: Whether the ranks run on more than a CPU.
    """
    findings = Findings(prefix)
    auto = [name for name in DEGREES if getattr(settings, name) == AUTO_DEGREE]
    for name in auto[1:]:
        findings.refuse(name, f"only one degree can be auto, and {auto[0]} is already")
    wrong = [name for name in DEGREES if not findings.whole(name, getattr(settings, name), 0)]
    if not wrong:
        resolved = resolve_parallelism(settings, world_size)
        _check_product(resolved, findings, world_size)
        _check_heads(resolved, findings, num_heads or {})
        _check_modes(resolved, findings, accelerator=accelerator)
        findings.problems += check_attention_backend(
            settings.attention_backend,
            prefix=f"{prefix}.attention_backend",
            context_parallel=resolved.context_parallel_degree > 1,
            accelerator=accelerator,
        )
    _check_modules(settings, findings, components)
    return one_per_field(findings.problems)


def _check_product(settings: ParallelismSettings, findings: Findings, world_size: int) -> None:
    """Refuse degrees that do not use exactly the ranks that are there."""
    if settings.world_size == world_size:
        return
    factors = " x ".join(f"{name} {getattr(settings, name)}" for name in DEGREES)
    set_degrees = [name for name in DEGREES if getattr(settings, name) != 1]
    findings.refuse(
        set_degrees[0] if set_degrees else DEGREES[0],
        f"{factors} = {settings.world_size}, but the world size is {world_size}",
    )


def _check_heads(
    settings: ParallelismSettings, findings: Findings, num_heads: Mapping[str, int]
) -> None:
    """Refuse degrees that cannot share out the attention heads."""
    tensor, ulysses = settings.tensor_parallel_degree, settings.ulysses_degree
    for name, heads in num_heads.items():
        if heads % tensor:
            findings.refuse(
                "tensor_parallel_degree", f"{tensor} does not divide the {heads} heads of {name}"
            )
            return
        local = heads // tensor
        of = f"{heads} heads of {name}" if tensor == 1 else f"{local} heads of {name} on each rank"
        if local % ulysses and not settings.ulysses_anything:
            findings.refuse("ulysses_degree", f"{ulysses} does not divide the {of}")
            return
        if not _can_pad(local, ulysses):
            findings.refuse("ulysses_degree", f"{ulysses} cannot share out the {of}, padded or not")
            return


def _can_pad(heads: int, ulysses: int) -> bool:
    """Tell whether padding fills less than one rank, as cache-dit asserts."""
    padding = -heads % ulysses
    return padding == 0 or padding < (heads + padding) // ulysses


def _check_modes(settings: ParallelismSettings, findings: Findings, *, accelerator: bool) -> None:
    """Check backend, flags and the ring against the degrees and the machine."""
    if settings.backend.upper() not in (wanted := _backends(settings)):
        findings.refuse(
            "backend", f"{shown(settings.backend)} does not fit: {' or '.join(wanted)} does"
        )
    for flag in ("ulysses_anything", "ulysses_float8", "ulysses_async"):
        if getattr(settings, flag) and settings.ulysses_degree == 1 and settings.world_size > 1:
            findings.refuse(flag, "it needs a ulysses_degree greater than 1")
    if settings.ulysses_anything and settings.ulysses_degree > 1 and settings.ring_degree > 1:
        findings.refuse(
            "ulysses_anything", "it does not work together with a ring_degree greater than 1"
        )
    findings.choice("ring_rotate_method", settings.ring_rotate_method, RING_ROTATE_METHODS)
    if settings.ulysses_float8 and not accelerator:
        findings.refuse("ulysses_float8", "8-bit floats need an accelerator", "unsupported")


def _backends(settings: ParallelismSettings) -> tuple[str, ...]:
    """Give the backends that can run these degrees."""
    tensor, context = settings.tensor_parallel_degree > 1, settings.context_parallel_degree > 1
    if tensor and context:
        return ("AUTO", "NATIVE_HYBRID")
    if tensor:
        return ("AUTO", "NATIVE_PYTORCH")
    if context:
        return ("AUTO", "CACHE_DIT", "NATIVE_DIFFUSER")
    return ("AUTO", "CACHE_DIT", "NATIVE_DIFFUSER", "NATIVE_PYTORCH", "NATIVE_HYBRID")


def _check_modules(
    settings: ParallelismSettings, findings: Findings, components: Collection[str] | None
) -> None:
    """Refuse modules that cache-dit would skip with no more than a warning."""
    for name in settings.extra_parallel_modules:
        if name.startswith("controlnet") and settings.tensor_parallel_degree > 1:
            # cache-dit leaves it whole with a warning, or stops at an assertion.
            reason = f"{name} cannot be split together with a tensor_parallel_degree over 1"
            findings.refuse("extra_parallel_modules", reason, "unsupported")
        if not EXTRA_MODULES.fullmatch(name):
            findings.refuse(
                "extra_parallel_modules",
                f"{shown(name)} is none of text_encoder, vae, controlnet and their kin",
            )
        elif components is not None and name not in components:
            findings.refuse("extra_parallel_modules", f"this pipeline has no {name}", "unsupported")
