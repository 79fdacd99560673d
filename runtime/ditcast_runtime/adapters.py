"""LoRA adapters in one loaded pipeline, on a rank: load one, choose which act, remove one.

What was measured and shaped this file. A layer of peft whose adapters are disabled calls the layer
that it wraps, so that a generation without adapters gives the bytes that it gave before any was
loaded. diffusers warns of weights that find no place and goes on, leaves the wrappers of a load
that failed, and for some files changes the pipeline's own weights, for every request: what a load
did is therefore looked at, and undone if it is not all of the adapter and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open

from ditcast_runtime.acceleration import SettingsDiffer
from ditcast_runtime.generation import AdapterUse

_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What diffusers and peft raise at files that are not made for the pipeline."""


class UnfitAdapter(ValueError):
    """The pipeline takes no adapters, or not this one; it is as it was before."""


class Adapters:
    """The adapters of one pipeline."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._loaded: list[str] = []
        self._held: tuple[tuple[str, float], ...] | None = ()
        """What `select` has verified; None while that is not known."""
        self._changes = 0

    @property
    def supported(self) -> bool:
        """Whether the pipeline can load adapters."""
        return callable(getattr(type(self._pipe), "load_lora_weights", None))

    def state(self) -> tuple[int, tuple[tuple[str, float], ...] | None]:
        """Tell apart what acts: how often adapters came or went, and which are selected."""
        return self._changes, self._held

    def load(self, name: str, path: str, weights_digest: str) -> tuple[str, ...]:
        """Load an adapter from a local file; give the components that it changes.

        Raises:
            UnfitAdapter: it cannot be loaded, and nothing of it is there.
            SettingsDiffer: what it left behind could not be removed.
        """
        if not self.supported:
            raise UnfitAdapter(f"{type(self._pipe).__name__} takes no adapters")
        if any(_is_compiled(module) for _, module in self._components()):
            raise UnfitAdapter("the pipeline is compiled, and would be again for each choice")
        _check_file(path, weights_digest)
        own = self._weights(without=name)
        self._held = None
        try:
            wanted = self._load(name, Path(path))
            if self._changed(name, own):
                raise UnfitAdapter("it changes the pipeline's own weights")
            components = self._check(name, wanted)
        except torch.OutOfMemoryError:
            self._take_back(name, own)
            raise
        except _FAILURES as error:
            self._take_back(name, own)
            raise UnfitAdapter(_first_words(error)) from error
        self._loaded.append(name)
        self._changes += 1
        self.select(())
        return components

    def unload(self, name: str) -> None:
        """Remove an adapter and give its memory back; nothing if it is not there."""
        if name not in self._loaded:
            return
        self._held = None
        self._loaded.remove(name)
        self._changes += 1
        self._remove(name)
        self.select(())

    def select(self, uses: Sequence[AdapterUse]) -> None:
        """Let these adapters act, and no other; nothing happens if they verifiably do.

        Raises:
            SettingsDiffer: others act, or with other weights.
        """
        wanted = tuple((use.name, use.weight) for use in uses)
        if wanted == self._held:
            return
        self._held = None
        if missing := [name for name, _ in wanted if name not in self._loaded]:
            raise SettingsDiffer(f"there are no adapters {', '.join(missing)}")
        if wanted:
            names, weights = zip(*wanted, strict=True)
            self._pipe.set_adapters(list(names), list(weights))
            self._pipe.enable_lora()
        elif self._loaded:
            self._pipe.disable_lora()
        self._verify(wanted)
        self._held = wanted

    def _load(self, name: str, path: Path) -> int:
        """Load it; give how many tensors of the file should now be in the pipeline."""
        counts: list[int] = []
        convert = self._pipe.lora_state_dict

        def recorded(*arguments: Any, **options: Any) -> Any:
            found = convert(*arguments, **options)
            weights = found[0] if isinstance(found, tuple) else found
            own = {key: weights[key] for key in weights if not key.endswith("alpha")}
            self._check_weights(own)
            counts.append(len(own))
            return found

        # It converts other trainers' names and splits fused layers: only what it gives tells how
        # many there are and where they go, and nothing has been touched by then.
        self._pipe.lora_state_dict = recorded
        try:
            with _quietly():
                self._pipe.load_lora_weights(
                    # A folder and a file: nothing of it can be taken for a model's id on a hub.
                    str(path.parent),
                    weight_name=path.name,
                    adapter_name=name,
                    use_safetensors=True,
                    local_files_only=True,
                )
        finally:
            del self._pipe.lora_state_dict
        return sum(counts)

    def _check_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Refuse what diffusers would write into the pipeline's own weights, or grow them for."""
        for key in weights:
            if "lora" not in key:
                raise UnfitAdapter(f"it has weights that are no LoRA adapter's, such as {key}")
        for component, module in self._components():
            for path, layer in module.named_modules():
                weight = weights.get(f"{component}.{path}.lora_A.weight")
                width = getattr(layer, "in_features", None)
                if weight is not None and width is not None and weight.shape[1] > width:
                    reason = f"it is made for {weight.shape[1]} inputs of {path}, which has {width}"
                    raise UnfitAdapter(reason)

    def _check(self, name: str, wanted: int) -> tuple[str, ...]:
        """Find out whether all of the adapter is there and acts where it can; give where."""
        placed: dict[str, int] = {}
        for component, module in self._components():
            for _, layer in _layers(module):
                if name in layer.scaling:
                    _check_layer(layer, component)
                    placed[component] = placed.get(component, 0) + len(_tensors(layer, name))
        if sum(placed.values()) != wanted or not placed:
            reason = f"{sum(placed.values())} of its {wanted} tensors have a place in the pipeline"
            raise UnfitAdapter(reason)
        return tuple(placed)

    def _take_back(self, name: str, own: dict[int, tuple[Any, int]]) -> None:
        self._remove(name)
        self.select(())
        if self._changed(name, own):
            # The rank leaves, and with it the group: the next one loads the weights anew.
            raise SettingsDiffer(f"the adapter {name} has changed the pipeline's own weights")

    def _remove(self, name: str) -> None:
        with _quietly():
            if self._loaded:
                self._pipe.delete_adapters(name)
            else:
                # The last one: the wrappers go too, and the layers are what they were.
                self._pipe.unload_lora_weights()

    def _verify(self, wanted: tuple[tuple[str, float], ...]) -> None:
        names = [name for name, _ in wanted]
        for component, module in self._components():
            for path, layer in _layers(module):
                acting = [] if layer.disable_adapters else list(layer.active_adapters)
                scales = {each: _scale(layer, each, weight) for each, weight in wanted}
                held = {each: layer.scaling[each] for each in names if each in layer.scaling}
                if acting != names or any(held[each] != scales[each] for each in held):
                    raise SettingsDiffer(f"{component}.{path} holds the adapters {acting}: {held}")

    def _components(self) -> Iterator[tuple[str, torch.nn.Module]]:
        for component in getattr(self._pipe, "_lora_loadable_modules", ()):
            module = getattr(self._pipe, component, None)
            if isinstance(module, torch.nn.Module):
                yield component, module

    def _weights(self, *, without: str) -> dict[int, tuple[Any, int]]:
        """Remember every weight that is not one adapter's, and how often it was written to.

        The tensors are kept: another could otherwise come to lie at the address of one.
        """
        return {
            id(weight): (weight, weight._version)  # noqa: SLF001 - torch has no other name for it
            for _, module in self._components()
            for key, weight in module.named_parameters()
            if f".{without}." not in key or ".lora_" not in key
        }

    def _changed(self, name: str, own: dict[int, tuple[Any, int]]) -> bool:
        now = self._weights(without=name)
        return now.keys() != own.keys() or any(now[key][1] != own[key][1] for key in own)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep three libraries from telling the log what the caller is told, or what is not so.

    transformers reports the weights of other adapters as made anew, though it leaves them alone;
    peft doubts that several adapters are meant, and tells which one it takes for the next.
    """
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)


def _check_file(path: str, weights_digest: str) -> None:
    """Refuse a file that is not the one that was meant, or that diffusers would load half."""
    try:
        with Path(path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        with safe_open(path, "pt") as tensors:
            names = list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise UnfitAdapter(f"the file cannot be read: {_first_words(error)}") from error
    if found != weights_digest:
        raise UnfitAdapter("the file has changed since it was chosen")
    if any("dora_scale" in name for name in names):
        raise UnfitAdapter("it is a DoRA, whose magnitudes diffusers leaves out")


def _is_compiled(module: torch.nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or any(
        getattr(part, "_compiled_call_impl", None) is not None for part in module.modules()
    )


def _layers(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for path, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield path, layer


def _check_layer(layer: Any, component: str) -> None:
    """Refuse a layer that an adapter cannot be added to as it is held here."""
    base = layer.get_base_layer()
    if type(base.weight) is not torch.nn.Parameter:
        kind = type(base.weight).__name__
        raise UnfitAdapter(
            f"the layers of {component} are split over the ranks or quantised ({kind}): "
            "adapters need them whole"
        )
    if getattr(getattr(base, "_cache_dit_hook", None), "hooks", None):
        raise UnfitAdapter(f"it changes a layer of {component} at which the ranks exchange parts")


def _tensors(layer: Any, name: str) -> list[torch.nn.Parameter]:
    """List an adapter's own tensors in a layer; those that no file has filled do not count."""
    return [
        weight
        for key, weight in layer.named_parameters()
        if key.startswith("lora_") and key.split(".")[1] == name and not weight.is_meta
    ]


def _scale(layer: Any, name: str, weight: float) -> float:
    """Give the factor that a weight comes to in a layer, as peft computes it."""
    if name not in layer.scaling:
        return 0.0
    rank: int = layer.r[name]
    alpha: float = layer.lora_alpha[name]
    return weight * alpha / (math.sqrt(rank) if layer.use_rslora.get(name) else rank)


def _first_words(error: Exception) -> str:
    """Give what an exception says, in one line."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return " ".join(str(error).split())[:500] or type(error).__name__
