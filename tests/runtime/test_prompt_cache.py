"""Encoded prompts are kept and given again: only for the very same question, and within bounds."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
import torch

from ditcast_runtime.events import PromptUse
from ditcast_runtime.prompt_cache import PromptCache

ENTRY = 4 * 8
"""Bytes of what `Pipe` makes of one prompt."""


class Pipe:
    """Encodes a prompt into its length, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def encode_prompt(
        self, prompt: str | list[str], device: torch.device | None = None, image: object = None
    ) -> tuple[torch.Tensor, None, list[torch.Tensor]]:
        """Give embeddings, no mask and a list of one, as pipelines do."""
        del device, image
        self.calls += 1
        if prompt == "fails":
            raise RuntimeError("no")
        return torch.full((4,), float(len(prompt))), None, [torch.zeros(4)]


class Kept:
    """A pipeline behind a cache, with adapters that are the number `variant`."""

    def __init__(self, entries: int) -> None:
        self.pipe: Any = Pipe()
        self.variant: Hashable = 0
        self.cache = PromptCache(self.pipe, lambda: self.variant)
        self.cache.keep(entries * ENTRY)


def test_what_comes_again_is_not_encoded_again() -> None:
    """Positional or by name: the same arguments give equal tensors, in the same shape."""
    kept = Kept(4)
    first = kept.pipe.encode_prompt("a cup", device=torch.device("cpu"))
    again = kept.pipe.encode_prompt(device=torch.device("cpu"), prompt="a cup")
    assert torch.equal(first[0], again[0])
    assert again[1] is None
    assert [each.tolist() for each in again[2]] == [[0.0] * 4]
    assert kept.pipe.calls == 1
    assert kept.cache.take_use() == PromptUse(encoded=1, reused=1)
    assert kept.cache.take_use() == PromptUse()


@pytest.mark.parametrize("other", ["a cup ", "A cup", ["a cup"]])
def test_other_arguments_are_another_question(other: object) -> None:
    """One character more, or a list instead of a text, is encoded by itself."""
    kept = Kept(4)
    kept.pipe.encode_prompt("a cup")
    kept.pipe.encode_prompt(other)
    assert kept.pipe.calls == 2


def test_other_adapters_are_another_question() -> None:
    """What a text encoder with other adapters made is not used."""
    kept = Kept(4)
    for variant in (0, 1, 0):
        kept.variant = variant
        kept.pipe.encode_prompt("a cup")
    assert kept.pipe.calls == 2


def test_numbers_that_are_equal_are_told_apart_by_type() -> None:
    """True and 1 are equal in Python, and not the same argument."""
    kept = Kept(4)
    for image in (True, 1, 1.0):
        kept.pipe.encode_prompt("a cup", image=image)
    assert kept.pipe.calls == 3


def test_what_cannot_be_compared_passes_through() -> None:
    """With a picture among the arguments everything is encoded each time, and nothing kept."""
    kept = Kept(4)
    for _ in range(2):
        kept.pipe.encode_prompt("a cup", image=torch.zeros(1))
    assert kept.pipe.calls == 2
    assert kept.cache.take_use() == PromptUse()


def test_nobody_can_write_into_what_is_kept() -> None:
    """A pipeline that changes its embeddings in place changes its own copy."""
    kept = Kept(4)
    for _ in range(3):
        made = kept.pipe.encode_prompt("a cup")[0]
        assert made.tolist() == [5.0] * 4
        made.zero_()


def test_the_longest_unused_go_first() -> None:
    """With room for two, the one that was used last stays."""
    kept = Kept(2)
    for prompt in ("one", "two", "one", "three", "one", "two"):
        kept.pipe.encode_prompt(prompt)
    assert kept.cache.take_use() == PromptUse(encoded=4, reused=2)


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    """It would push out everything else for nothing."""
    kept = Kept(1)
    kept.cache.keep(ENTRY - 1)
    for _ in range(2):
        kept.pipe.encode_prompt("a cup")
    assert kept.cache.take_use() == PromptUse(encoded=2)


def test_what_failed_is_not_kept() -> None:
    """It is tried again, and counts for nothing."""
    kept = Kept(4)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            kept.pipe.encode_prompt("fails")
    assert kept.pipe.calls == 2
    assert kept.cache.take_use() == PromptUse()


def test_all_can_be_forgotten() -> None:
    """After a failure on one rank all ranks begin with nothing."""
    kept = Kept(4)
    kept.pipe.encode_prompt("a cup")
    kept.cache.clear()
    kept.pipe.encode_prompt("a cup")
    assert kept.pipe.calls == 2
    assert kept.cache.take_use() == PromptUse(encoded=1)


def test_without_room_everything_is_encoded() -> None:
    """So it is during the warm-up, which measures it, and where the cache is off."""
    kept = Kept(0)
    for _ in range(2):
        kept.pipe.encode_prompt("a cup")
    assert kept.cache.take_use() == PromptUse(encoded=2)


def test_a_pipeline_without_text_is_left_as_it_is() -> None:
    """There is no method to stand in front of."""
    pipe = object()
    assert PromptCache(pipe, lambda: 0).take_use() == PromptUse()
