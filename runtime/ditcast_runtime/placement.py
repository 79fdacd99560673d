"""Puts a loaded pipeline where it runs: on the device, or waiting in main memory; and compiles it.

Blocks are offloaded by hooks of cache-dit (`acceleration.offload`): those of diffusers
replace the transformer's `forward`, and the cache could then not be switched off again. Model and
sequential offload replace it too, which is why `lifted` takes them off while the cache is switched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ditcast_runtime.acceleration import Accelerator, BlockList
from ditcast_runtime.acceleration.offload import offload_blocks
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.launches import Launch
from ditcast_runtime.settings import (
    Compile,
    LoadingSettings,
    Offload,
    ParallelismSettings,
    check_loading,
)

_HOOKED = (Offload.MODEL, Offload.SEQUENTIAL)


class Placement:
    """How one pipeline lies in memory."""

    def __init__(self, pipe: Any, settings: LoadingSettings, device: torch.device) -> None:
        self._pipe = pipe
        self._settings = settings
        self._device = device
        self._hooked = False

    def place(self, block_lists: tuple[BlockList, ...]) -> None:
        """Set up the VAE and the memory format, and place what is not hooked later."""
        if self._settings.vae_tiling:
            self._pipe.vae.enable_tiling()
        if self._settings.vae_slicing:
            self._pipe.vae.enable_slicing()
        if self._settings.channels_last:
            for module in _modules(self._pipe).values():
                _keep_channels_last(module)
        if self._settings.offload is Offload.LAYERWISE:
            blocks = offload_blocks(block_lists, self._device)
            for module in _modules(self._pipe).values():
                _move(module, self._device, blocks)
        elif self._settings.offload is Offload.NONE:
            self._pipe.to(self._device)

    def finish(self) -> None:
        """Compile, and hook what waits in main memory; after cache-dit has wrapped the blocks."""
        for transformer in denoisers(self._pipe).values():
            if self._settings.compile is Compile.REGIONAL:
                transformer.compile_repeated_blocks()
            elif self._settings.compile is Compile.WHOLE:
                transformer.compile()
        self._hook()

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Take off, while it lasts, the hooks that stand over the transformer's `forward`."""
        if not self._hooked:
            yield
            return
        self._pipe.remove_all_hooks()
        try:
            yield
        finally:
            self._hook()

    def _hook(self) -> None:
        if self._settings.offload is Offload.MODEL:
            self._pipe.enable_model_cpu_offload(device=self._device)
        elif self._settings.offload is Offload.SEQUENTIAL:
            self._pipe.enable_sequential_cpu_offload(device=self._device)
        self._hooked = self._settings.offload in _HOOKED


def denoisers(pipe: Any) -> dict[str, Any]:
    """Give the transformers or UNets of a pipeline by their names."""
    return {
        name: module
        for name, module in _modules(pipe).items()
        if name.startswith(("transformer", "unet"))
    }


def check_placement(
    launch: Launch, pipe: Any, accelerator: Accelerator, device: torch.device
) -> None:
    """Raise ConfigError with everything that this pipeline cannot do on this device."""
    problems = check_loading(
        launch.loading,
        parallelism=launch.acceleration.parallelism or ParallelismSettings(),
        components=components_with_weights(pipe),
        faults=loading_faults(pipe, accelerator),
        accelerator=device.type != "cpu",
    )
    if problems:
        raise ConfigError(problems)


def main_dtype(pipe: Any) -> torch.dtype:
    """Give the number type of what denoises; others may have types of their own."""
    found: dict[str, Any] = denoisers(pipe) or dict(_modules(pipe))
    dtype: torch.dtype = next(iter(found.values())).dtype
    return dtype


def components_with_weights(pipe: Any) -> tuple[str, ...]:
    """Name the components that a number type can be chosen for."""
    return tuple(_modules(pipe))


def loading_faults(pipe: Any, accelerator: Accelerator) -> dict[str, str]:
    """Say what of all settings this pipeline cannot do, by `field` or `field=value`, and why."""
    kind = type(pipe).__name__
    modules = denoisers(pipe)
    found = {
        "vae_tiling": _vae_fault(pipe, "use_tiling", "in tiles"),
        "vae_slicing": _vae_fault(pipe, "use_slicing", "picture by picture"),
        "offload=model": ""
        if pipe.model_cpu_offload_seq
        else f"{kind} does not say in which order its components run",
        "offload=layerwise": ""
        if accelerator.cacheable
        else f"cache-dit does not know the blocks of {kind}",
        "compile=whole": "" if modules else f"{kind} has no transformer",
        "compile=regional": _regional_fault(modules) if modules else f"{kind} has no transformer",
    }
    return {name: reason for name, reason in found.items() if reason}


def _regional_fault(modules: dict[str, Any]) -> str:
    for module in modules.values():
        if not getattr(module, "_repeated_blocks", None):
            return f"{type(module).__name__} does not say which blocks it repeats: use whole"
    return ""


def _vae_fault(pipe: Any, attribute: str, how: str) -> str:
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return f"{type(pipe).__name__} has no VAE"
    return "" if hasattr(vae, attribute) else f"{type(vae).__name__} cannot decode {how}"


def _modules(pipe: Any) -> dict[str, torch.nn.Module]:
    parts = pipe.components.items()
    return {name: part for name, part in parts if isinstance(part, torch.nn.Module)}


def _keep_channels_last(module: torch.nn.Module) -> None:
    """Turn the weights of all convolutions; each kind of them has a format of its own."""
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.weight.data = part.weight.data.to(memory_format=torch.channels_last)
        elif isinstance(part, torch.nn.Conv3d):
            part.weight.data = part.weight.data.to(memory_format=torch.channels_last_3d)


def _move(module: torch.nn.Module, device: torch.device, without: set[torch.nn.Module]) -> None:
    """Move a module to the device, but for those of its parts that are moved when they run."""
    if module in without:
        return
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.data = tensor.data.to(device)
    for child in module.children():
        _move(child, device, without)
