"""Quantisation as the domain says it: what becomes of the weights when a pipeline is loaded.

cache-dit's functions (`filter_fn`, `calibrate_fn`) have no place in a file or a request. Defaults
are cache-dit's own, and a test compares them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass

from ditcast_runtime.settings.problems import INT64_MAX, Findings, Problem, one_per_field, shown

QUANTIZE_BACKENDS = ("AUTO", "TORCHAO", "CACHE_DIT")
_BACKEND_ALIASES = {"ao": "TORCHAO", "cache-dit": "CACHE_DIT", "cachedit": "CACHE_DIT"}

QUANT_TYPES = (
    "float8_per_row", "float8_per_tensor", "float8_per_block", "float8_weight_only", "nvfp4",
    "nvfp4_weight_only", "int8_per_row", "int8_per_tensor", "int8_weight_only", "int4_weight_only",
)  # fmt: skip
"""What torchao can make of weights; `svdq_int4_r32_dq` and its kin are cache-dit's own."""

_SVDQ_TYPE = re.compile(r"svdq_(int4|nvfp4)_r(\d+)(_dq)?")

_SVDQ_WORDS = {
    "calibrate_precision": ("low", "medium", "high"),
    "runtime_kernel": ("v1", "v2"),
    "quantize_device": ("auto", "cpu", "cuda"),
    "smooth_strategy": ("identity", "weight", "weight_inv", "few_shot"),
    "few_shot_relax_strategy": (
        "fixed", "top", "top_q4", "auto", "stable_auto", "power", "log", "rank",
    ),
}  # fmt: skip
"""Words that cache-dit knows, for the `_dq` types; it takes them in any case of letters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SvdqKwargs:
    """Options of cache-dit's own quantisation by singular values, under its names."""

    streaming: bool = True
    """Whether calibration samples are worked in one by one."""
    calibrate_precision: str = "low"
    """low, medium or high."""
    runtime_kernel: str = "v1"
    """v1 or v2; nvfp4 has v1 only."""
    quantize_device: str = "auto"
    """auto, cpu or cuda."""
    offload_quantized_layers_to_cpu: bool = False
    """Whether finished layers wait in main memory."""
    layerwise_offload: bool = False
    """Whether layers are moved in and out one by one during collection."""
    async_transfer: bool = False
    """Whether that moving overlaps computing."""
    transfer_buckets: int = 1
    """Layers fetched ahead, from 1."""
    prefetch_limit: bool = False
    """Whether fetching ahead is kept to a careful number."""
    max_copy_streams: int | None = None
    """Most copy streams, from 1. None: no bound."""
    max_inflight_prefetch_bytes: int | None = None
    """Most bytes fetched ahead at once, from 1. None: no bound."""
    persistent_buckets: int = 0
    """First layers that stay on the device, from 0."""
    persistent_bins: int = 1
    """Bins over which they are spread, from 1."""
    defer_move_to_execution_device: bool = False
    """Whether the pipeline moves to the device only after quantisation."""
    activation_buffer_flush_sample_count: int | None = 1
    """Samples after which buffers are flushed, from 1."""
    activation_buffer_flush_cpu_bytes: int | None = None
    """Bytes from which buffers are flushed, from 1. None: no bound."""
    smooth_strategy: str | None = None
    """identity, weight, weight_inv or few_shot. None: identity, as only `_dq` types are served."""
    few_shot_steps: int | None = 1
    """Transformer calls that few_shot observes first, from 1."""
    few_shot_relax_factor: float = 1.5
    """Largest factor on activation spans, from 1."""
    few_shot_relax_top_ratio: float = 0.25
    """Share of the channels with the largest spans, over 0, to 1."""
    few_shot_relax_strategy: str = "auto"
    """fixed, top, auto, stable_auto, power, log or rank."""
    few_shot_auto_compile: bool = False
    """Whether compilation waits for quantisation; needs quantize_device cuda."""
    fused_mlp: bool = False
    """Whether feed-forward layers run as one kernel."""
    svd_refine_iters: int = 0
    """Rounds of refinement of the low-rank part, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentQuantization:
    """What is quantised differently in one component. None: as everywhere."""

    component: str
    """Name of the component in the pipeline."""
    backend: str | None = None
    quant_type: str | None = None
    exclude_layers: tuple[str, ...] | None = None
    regional_quantize: bool | None = None
    repeated_blocks: tuple[str, ...] | None = None
    per_tensor_fallback: bool | None = None
    precision_plan: tuple[tuple[str, str], ...] | None = None
    serialize_to: str | None = None
    svdq_kwargs: SvdqKwargs | None = None
    verbose: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeSettings:
    """How weights are quantised at load."""

    backend: str = "AUTO"
    """Who quantises: AUTO, TORCHAO or CACHE_DIT, in any case of letters."""
    quant_type: str = "float8_per_row"
    """Kind of quantisation: one of QUANT_TYPES, or `svdq_{int4,nvfp4}_r{rank}_dq`."""
    exclude_layers: tuple[str, ...] = ("embedder", "embed", "modulation", "mod")
    """Parts of layer names that are left as they are."""
    regional_quantize: bool = True
    """Whether only the repeated blocks are quantised."""
    repeated_blocks: tuple[str, ...] = ()
    """Class names of the repeated blocks. Empty: what the model declares."""
    components_to_quantize: tuple[ComponentQuantization, ...] = ()
    """Components that are quantised, sorted by name. Empty: the transformer alone."""
    per_tensor_fallback: bool = True
    """Whether layers that cannot be done by row or block are done by tensor."""
    precision_plan: tuple[tuple[str, str], ...] = ()
    """Pairs of a part of a layer name and its kind, sorted by name. Empty: `quant_type`."""
    serialize_to: str | None = None
    """Folder that svdq weights are written to. Only ever from the server's own files."""
    svdq_kwargs: SvdqKwargs | None = None
    """Options of the svdq types. None: cache-dit's defaults."""
    verbose: bool = False
    """Whether the log says how each layer was quantised."""


def quantize_options(settings: QuantizeSettings) -> dict[str, object]:
    """Give the keyword arguments of cache-dit's QuantizeConfig."""
    options = _options(settings, skip="components_to_quantize")
    if not settings.precision_plan:
        del options["precision_plan"]
    components = settings.components_to_quantize
    overrides = {entry.component: _options(entry, skip="component") for entry in components}
    if any(overrides.values()):
        options["components_to_quantize"] = overrides
    elif overrides:
        options["components_to_quantize"] = list(overrides)
    return options


def _options(
    settings: QuantizeSettings | ComponentQuantization | SvdqKwargs, skip: str = ""
) -> dict[str, object]:
    """Give the fields as lists, mappings and scalars, without a None that says nothing."""
    options: dict[str, object] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == skip or (value is None and field.default is None):
            continue
        if field.name == "precision_plan" and value is not None:
            value = dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, SvdqKwargs):
            value = _options(value)
        options[field.name] = value
    return options


def check_quantize(
    settings: QuantizeSettings,
    *,
    prefix: str = "quantize",
    components: Collection[str] | None = None,
    accelerator: bool = True,
) -> tuple[Problem, ...]:
    """Find every value that cache-dit could not quantise with, all at once.

    Args:
        settings: What to check.
        prefix: Path of the settings in the request.
        components: Names of the pipeline's components. None: not known yet.
        accelerator: Whether the ranks run on more than a CPU.
    """
    findings = Findings(prefix)
    plan, backend = settings.precision_plan, settings.backend
    _check_kind(findings, settings.quant_type, backend, plan, accelerator=accelerator)
    _check_svdq(findings, settings.quant_type, settings.svdq_kwargs)
    if settings.quant_type.startswith("svdq"):
        if settings.components_to_quantize:
            findings.refuse("components_to_quantize", "the svdq types know the transformer only")
        if not settings.per_tensor_fallback:
            findings.refuse("per_tensor_fallback", "the svdq types need it to be true")
    for entry in settings.components_to_quantize:
        if components is not None and entry.component not in components:
            findings.refuse(
                "components_to_quantize", f"this pipeline has no {entry.component}", "unsupported"
            )
        inner = Findings(f"{prefix}.components_to_quantize.{entry.component}")
        kind = settings.quant_type if entry.quant_type is None else entry.quant_type
        own_plan = plan if entry.precision_plan is None else entry.precision_plan
        own_backend = backend if entry.backend is None else entry.backend
        _check_kind(inner, kind, own_backend, own_plan, accelerator=accelerator)
        _check_svdq(inner, kind, entry.svdq_kwargs or settings.svdq_kwargs)
        findings.problems += inner.problems
    return one_per_field(findings.problems)


def _check_kind(
    findings: Findings,
    kind: str,
    backend: str,
    plan: tuple[tuple[str, str], ...],
    *,
    accelerator: bool,
) -> None:
    """Check the kind of quantisation, who does it, and the plan by layers."""
    name = _BACKEND_ALIASES.get(backend.lower(), backend.upper())
    findings.choice("backend", name, QUANTIZE_BACKENDS)
    svdq = _SVDQ_TYPE.fullmatch(kind.lower())
    if svdq is None:
        findings.choice("quant_type", kind.lower(), QUANT_TYPES)
    elif svdq[3] is None:
        findings.refuse(
            "quant_type",
            f"{kind} needs a calibration function, which a server has no way to take: "
            f"use {kind}_dq",
            "unsupported",
        )
    if name == ("TORCHAO" if svdq else "CACHE_DIT"):
        findings.refuse("backend", f"{name} cannot do {shown(kind)}")
    if svdq and plan:
        findings.refuse("precision_plan", "the svdq types know no plan by layers")
    for _, planned in plan:
        if not findings.choice("precision_plan", planned, QUANT_TYPES):
            break
    if not accelerator:
        reason = f"{kind} needs an accelerator: cache-dit quantises on CUDA devices alone"
        findings.refuse("quant_type", reason, "unsupported")


def _check_svdq(findings: Findings, kind: str, options: SvdqKwargs | None) -> None:
    """Check the options of the svdq types."""
    if options is None:
        return
    if not kind.lower().startswith("svdq"):
        findings.refuse("svdq_kwargs", f"{shown(kind)} takes none: they belong to the svdq types")
    inner = Findings(f"{findings.prefix}.svdq_kwargs")
    _check_svdq_words(inner, kind, options)
    for name in ("transfer_buckets", "persistent_bins", "max_copy_streams", "few_shot_steps"):
        inner.whole(name, getattr(options, name), 1)
    inner.whole(
        "activation_buffer_flush_sample_count", options.activation_buffer_flush_sample_count, 1
    )
    for name in ("max_inflight_prefetch_bytes", "activation_buffer_flush_cpu_bytes"):
        inner.whole(name, getattr(options, name), 1, INT64_MAX)
    for name in ("persistent_buckets", "svd_refine_iters"):
        inner.whole(name, getattr(options, name), 0)
    inner.real("few_shot_relax_factor", options.few_shot_relax_factor, low=1)
    inner.real("few_shot_relax_top_ratio", options.few_shot_relax_top_ratio, above=0, high=1)
    findings.problems += inner.problems


def _check_svdq_words(findings: Findings, kind: str, options: SvdqKwargs) -> None:
    """Check the words, and the two pairs that exclude each other."""
    for name, allowed in _SVDQ_WORDS.items():
        word = getattr(options, name)
        if word is not None:
            findings.choice(name, word.lower(), allowed)
    if "nvfp4" in kind.lower() and options.runtime_kernel.lower() == "v2":
        findings.refuse("runtime_kernel", "the nvfp4 types have v1 only")
    if options.few_shot_auto_compile and options.quantize_device.lower() != "cuda":
        findings.refuse("few_shot_auto_compile", "it needs quantize_device to be cuda")
