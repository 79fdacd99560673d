"""Which attention implementation the transformer uses: those that run on a CPU, run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from tests.options import tiny
from tests.options.proofs import proves
from tests.options.running import Bench
from torch.autograd.profiler import profile

from ditcast_runtime.settings import Acceleration, CacheSettings
from ditcast_runtime.settings.attention import CPU_ATTENTION

STEPS = 2
CALLS = STEPS * tiny.BLOCKS
OF_TEXT = 1
"""Calls that the text encoder makes: fused in any case."""
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"
PLAIN = "aten::_softmax"


@pytest.fixture(autouse=True)
def own_choice() -> Iterator[None]:
    """Keep the choice of these pipelines from those of other tests: diffusers has it globally."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@proves(*(f"attention_backend: {name}" for name in CPU_ATTENTION))
@pytest.mark.parametrize("name", CPU_ATTENTION)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_an_implementation_that_runs_on_a_cpu_is_used(bench: Bench, name: str) -> None:
    """The transformer's attention, in each block and step, is the fused kernel or a softmax."""
    usual = bench.run(CacheSettings(), STEPS)
    other = Bench(tiny.pipeline(), Acceleration(attention_backend=name))
    processors = {block.attn.processor for block in other.pipe.transformer.transformer_blocks}
    assert {each._attention_backend for each in processors} == {name}
    with profile() as profiled:
        trace = other.run(CacheSettings(), STEPS)
    assert torch.allclose(trace.output, usual.output, atol=1e-4)
    counts = Counter({event.key: event.count for event in profiled.key_averages()})
    fused = name not in {"_native_math", "flex"}
    assert counts[FUSED] == OF_TEXT + (CALLS if fused else 0)
    assert counts[PLAIN] == (0 if fused else CALLS)
