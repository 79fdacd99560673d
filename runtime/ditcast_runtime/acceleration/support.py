"""Says what cache-dit cannot do with a pipeline on this machine, before it is asked to.

Each function gives the reason, or nothing. Without them the fault would show in the first forward
pass, or not at all: what cache-dit has no plan for it skips with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from cache_dit import QuantizeBackend
from cache_dit.attention import _maybe_register_custom_attn_backends
from cache_dit.distributed.async_ulysses import AsyncUlyssesRegistry
from cache_dit.distributed.autoencoders import dispatch as autoencoders
from cache_dit.distributed.controlnets import dispatch as controlnets
from cache_dit.distributed.text_encoders import dispatch as text_encoders
from cache_dit.distributed.transformers import dispatch as transformers
from cache_dit.utils import parse_extra_modules
from diffusers.models import attention_dispatch

ATTENTION_FAULTS = (
    *(AssertionError, AttributeError, ImportError, OSError),
    *(RuntimeError, TypeError, ValueError),
)
"""What implementations raise where their package, device or dtype is missing."""

_TOKENS = 128
"""Of the attention that is tried: more than any kernel's least block."""


def mode_faults(
    pipe: Any, models: tuple[torch.nn.Module, ...], world_size: int, device: torch.device
) -> dict[str, str]:
    """Say of each way of splitting why this pipeline cannot have it; empty: it can.

    Args:
        pipe: The pipeline.
        models: Its transformers; none where cache-dit does not know it.
        world_size: Number of ranks.
        device: Where they run.
    """
    kind, components = type(pipe).__name__, pipe.components
    unknown = "" if models else f"cache-dit does not know {kind}"
    context = unknown or context_fault(models)
    eight = "float8 communication needs an accelerator" if device.type == "cpu" else ""
    modules = ("text_encoder", "vae", "controlnet")
    return {
        "ulysses": context,
        "ulysses_anything": context,
        "ulysses_async": context or async_fault(models),
        "ulysses_float8": context or eight,
        "ring": context,
        "tensor": unknown or tensor_fault(models),
        **{name: unknown or module_fault(kind, components, name, world_size) for name in modules},
    }


def context_fault(models: Iterable[torch.nn.Module]) -> str:
    """Say why the sequence cannot be split, by Ulysses or a ring."""
    transformers._ensure_cp_planners_activated()  # noqa: SLF001 - as cache-dit does before it looks
    find = transformers.ContextParallelismPlannerRegister.get_planner
    return _without_plan(find, models, "cannot split the sequence of")


def tensor_fault(models: Iterable[torch.nn.Module]) -> str:
    """Say why the weights cannot be split."""
    transformers._ensure_tp_planners_activated()  # noqa: SLF001
    find = transformers.TensorParallelismPlannerRegister.get_planner
    return _without_plan(find, models, "cannot split the weights of")


def async_fault(models: Iterable[torch.nn.Module]) -> str:
    """Say why Ulysses cannot overlap communication and computation."""
    find = AsyncUlyssesRegistry.get_planner
    return _without_plan(find, models, "has no asynchronous Ulysses for")


def module_fault(kind: str, components: Mapping[str, Any], name: str, world_size: int) -> str:
    """Say why an extra module cannot be split over so many ranks."""
    if components.get(name) is None:
        return f"this pipeline has no {name}"
    module = _meant(kind, components, name)
    if name.startswith("text_encoder"):
        text_encoders._ensure_text_encoder_tp_planners_activated()  # noqa: SLF001
        find = text_encoders.TextEncoderTensorParallelismPlannerRegister.get_planner
        return _without_plan(find, [module], "cannot split") or _head_fault(module, world_size)
    if name.startswith("controlnet"):
        controlnets._ensure_controlnet_cp_planners_activated()  # noqa: SLF001
        find = controlnets.ControlNetContextParallelismPlannerRegister.get_planner
    else:
        autoencoders._ensure_auto_encoder_dp_planners_activated()  # noqa: SLF001
        find = autoencoders.AutoEncoderDataParallelismPlannerRegister.get_planner
    return _without_plan(find, [module], "cannot split")


def attention_fault(models: Iterable[torch.nn.Module], name: str, device: torch.device) -> str:
    """Say why an attention implementation cannot run here, by running it once."""
    models = tuple(models)
    if not any(_takes_attention(model) for model in models):
        return "the attention of this pipeline cannot be exchanged"
    _maybe_register_custom_attn_backends()
    for model in models:
        try:
            _try_attention(model, name, device)
        except ATTENTION_FAULTS as error:
            return f"{name} does not run here: {' '.join(str(error).split())}"
    return ""


def quantize_fault(kind: str, dtype: torch.dtype, device: torch.device) -> str:
    """Say why weights cannot be quantised so."""
    kind = kind.lower()
    if device.type != "cuda":
        return f"{kind} needs a CUDA device: cache-dit quantises on no other"
    if kind.startswith("svdq"):
        ready = QuantizeBackend.is_supported(QuantizeBackend.CACHE_DIT)
        return "" if ready else f"{kind} needs a cache-dit that was built with its CUDA kernels"
    if not QuantizeBackend.is_supported(QuantizeBackend.TORCHAO):
        return f"{kind} needs torchao: pip install 'cache-dit[quantization]'"
    least = {"float8": (8, 9), "nvfp4": (10, 0)}.get(kind.partition("_")[0], (0, 0))
    found = torch.cuda.get_device_capability(device)
    if found < least:
        return (
            f"{kind} needs a device of capability {least[0]}.{least[1]}, not {found[0]}.{found[1]}"
        )
    if kind == "float8_per_row" and dtype != torch.bfloat16:
        return f"{kind} needs weights in bfloat16, not {dtype}"
    return ""


def _without_plan(
    find: Callable[[str], object], models: Iterable[torch.nn.Module], what: str
) -> str:
    """Name the first model that a registry of cache-dit has nothing for."""
    for model in models:
        name = type(model).__name__
        try:
            find(name)
        except ValueError:
            return f"cache-dit {what} {name}"
    return ""


def _meant(kind: str, components: Mapping[str, Any], name: str) -> torch.nn.Module:
    """Give the module that cache-dit takes for a name: of several text encoders, the largest."""
    # All that it looks at are the name of the pipeline's class and its components.
    stand_in = SimpleNamespace(pipe=type(kind, (), dict(components))())
    module: torch.nn.Module = parse_extra_modules(stand_in, [name])[0]
    return module


def _head_fault(module: torch.nn.Module, world_size: int) -> str:
    """Refuse heads that the ranks cannot share: cache-dit cuts through them."""
    config: Any = getattr(module, "config", None)
    config = getattr(config, "text_config", None) or config
    for name in ("num_attention_heads", "num_heads", "num_key_value_heads"):
        heads = getattr(config, name, None)
        if isinstance(heads, int) and heads % world_size:
            cls = type(module).__name__
            return f"{world_size} ranks cannot share the {heads} {name} of {cls}"
    return ""


def _takes_attention(model: torch.nn.Module) -> bool:
    """Tell whether a model's attention asks which implementation to use."""
    processors = (getattr(part, "processor", None) for part in model.modules())
    return any(hasattr(processor, "_attention_backend") for processor in processors)


def _try_attention(model: torch.nn.Module, name: str, device: torch.device) -> None:
    """Run an implementation on noise of the shape, dtype and device that the model will give it."""
    backend = attention_dispatch.AttentionBackendName(name)
    attention_dispatch._check_attention_backend_requirements(backend)  # noqa: SLF001
    attention_dispatch._maybe_download_kernel_for_backend(backend)  # noqa: SLF001
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "attention_head_dim", None)
    shape = (
        1,
        _TOKENS,
        heads if isinstance(heads, int) else 8,
        size if isinstance(size, int) else 64,
    )
    noise = torch.randn(shape, device=device, dtype=next(model.parameters()).dtype)
    with torch.inference_mode():
        attention_dispatch.dispatch_attention_fn(noise, noise, noise, backend=backend)
