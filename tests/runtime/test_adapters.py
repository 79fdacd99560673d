"""Adapters in one pipeline of another kind, FLUX's: what they change, what is refused.

It has two components that take adapters, and diffusers writes some files into its own weights.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.kinds.builders import images

from ditcast_runtime.adapters import Adapters, UnfitAdapter
from ditcast_runtime.generation import AdapterUse

Weights = dict[str, torch.Tensor]


class Bench:
    """A pipeline with random weights, and adapters for it; new layers of it are counted."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.pipe: Any = images.flux()
        for name in ("transformer", "text_encoder"):
            getattr(self.pipe, name).eval()
        self.adapters = Adapters(self.pipe)
        self.folder = folder
        self.linear = {
            f"{name}.{path}": layer
            for name in ("transformer", "text_encoder")
            for path, layer in getattr(self.pipe, name).named_modules()
            if isinstance(layer, torch.nn.Linear)
        }
        self.before = self.keys()

    def weights(self, *layers: str) -> Weights:
        """Make the weights of an adapter for all layers with such names."""
        made: Weights = {}
        for path, layer in self.linear.items():
            if any(part in path for part in layers):
                made[f"{path}.lora_A.weight"] = torch.randn(2, layer.in_features)
                made[f"{path}.lora_B.weight"] = torch.randn(layer.out_features, 2)
        return made

    def load(self, name: str, weights: Weights) -> tuple[str, ...]:
        """Load it from a file."""
        file = self.folder / f"{name}.safetensors"
        save_file(weights, file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return self.adapters.load(name, str(file), digest)

    def text(self, *uses: tuple[str, float]) -> torch.Tensor:
        """Encode a text with some adapters."""
        self.adapters.select(
            [AdapterUse(name=name, weight=weight, weights_digest="") for name, weight in uses]
        )
        with torch.no_grad():
            states: torch.Tensor = self.pipe.text_encoder(torch.arange(8)[None]).last_hidden_state
        return states

    def keys(self) -> set[str]:
        """Name every weight that is there."""
        parts = (self.pipe.transformer, self.pipe.text_encoder)
        return {key for part in parts for key in part.state_dict()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Make one for all tests: each leaves it as it was."""
    return Bench(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(autouse=True)
def nothing_left(bench: Bench) -> Iterator[None]:
    """Hold every test to it that the pipeline is as it was."""
    yield
    for name in ("one", "two"):
        bench.adapters.unload(name)
    assert bench.keys() == bench.before


def test_components_are_those_that_an_adapter_changes(bench: Bench) -> None:
    """One, or the other, or both."""
    assert bench.load("one", bench.weights("text_encoder")) == ("text_encoder",)
    assert bench.load("two", bench.weights("to_k", "q_proj")) == ("transformer", "text_encoder")


def test_each_choice_is_its_own(bench: Bench) -> None:
    """Of text encoders too: weights scale, several add up, none is what it was before any."""
    plain = bench.text()
    bench.load("one", bench.weights("q_proj"))
    bench.load("two", bench.weights("v_proj"))
    assert torch.equal(bench.text(), plain)
    one, both = bench.text(("one", 0.5)), bench.text(("two", 1.0), ("one", 0.5))
    assert not torch.equal(one, both)
    assert torch.equal(bench.text(("one", 0.5), ("two", 0.0)), one)
    assert torch.equal(bench.text(("two", 1.0), ("one", 0.5)), both)
    assert not torch.equal(bench.text(("one", 1.0)), one)
    bench.adapters.unload("one")
    assert not torch.equal(bench.text(("two", 1.0)), plain)
    assert torch.equal(bench.text(), plain)


def test_an_unload_gives_the_memory_back(bench: Bench) -> None:
    """No weight of it lives on."""
    bench.load("one", bench.weights("to_q"))
    bench.load("two", bench.weights("to_q"))
    held = [
        weakref.ref(weight)
        for key, weight in bench.pipe.transformer.named_parameters()
        if ".one." in key
    ]
    assert held
    bench.adapters.unload("one")
    assert [weight for weight in held if weight() is not None] == []


def test_what_is_not_all_of_an_adapter_and_nothing_else_is_refused(bench: Bench) -> None:
    """Each says why, and leaves another adapter alone."""
    bench.load("one", bench.weights("q_proj"))
    acting = bench.text(("one", 1.0))
    good = bench.weights("attn.to_q")
    up = next(key for key in good if "lora_B" in key)
    block = "transformer.transformer_blocks.0.attn"
    wide = {f"{block}.to_k.lora_A.weight": torch.ones(2, 512)}
    wrong: dict[str, Weights] = {
        "no LoRA adapter's": {**good, f"{block}.norm_q.weight": torch.ones(16)},
        "512 inputs": {**good, **wide, f"{block}.to_k.lora_B.weight": torch.ones(32, 2)},
        "have a place": {**good, "vae.conv.lora_A.weight": torch.ones(2, 2)},
        "size mismatch": {**good, up: torch.ones(5, 2)},
        "it lacks": {key: good[key] for key in good if key != up},
        "DoRA": {**good, f"{block}.to_q.dora_scale": torch.ones(1, 32)},
    }
    for reason, weights in wrong.items():
        with pytest.raises(UnfitAdapter, match=reason):
            bench.load("two", weights)
        assert torch.equal(bench.text(("one", 1.0)), acting)


def test_a_file_that_changed_since_it_was_chosen_is_refused(bench: Bench) -> None:
    """The receipt would name other weights."""
    file = bench.folder / "one.safetensors"
    save_file(bench.weights("to_q"), file)
    with pytest.raises(UnfitAdapter, match="has changed"):
        bench.adapters.load("one", str(file), "00" * 32)


def test_compiled_and_split_layers_are_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a generation would find out."""
    block = bench.pipe.transformer.transformer_blocks[0]
    monkeypatch.setattr(block, "_compiled_call_impl", print)
    with pytest.raises(UnfitAdapter, match="compiled"):
        bench.load("one", bench.weights("to_q"))
    monkeypatch.undo()
    layer = block.attn.to_q
    whole, layer.weight = layer.weight, _Split(layer.weight.detach())
    with pytest.raises(UnfitAdapter, match="split over the ranks"):
        bench.load("one", bench.weights("to_q"))
    layer.weight = whole


class _Split(torch.nn.Parameter):
    """Stands for a weight that is no plain tensor."""
