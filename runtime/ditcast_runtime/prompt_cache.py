"""Keeps what a pipeline's `encode_prompt` gave: a text that comes again is not encoded again.

It stands in front of the method itself, for every kind of pipeline: what is told apart is what the
pipeline asks for, arguments and all. A call with anything but plain values, such as the pictures of
an editing pipeline, goes through as if nothing stood there.

Every rank must decide alike, since a text encoder that is split over ranks waits for all of them.
It does: what is kept follows from the calls alone, which are the same on all ranks, and after a
failure, which may have met one rank before the others had what it had, all forget everything.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ditcast_runtime.events import PromptUse


@dataclass(frozen=True, slots=True)
class _Kept:
    tensor: torch.Tensor
    """On the host: device memory belongs to the pipeline."""
    device: torch.device


class _NotPlain(Exception):
    """A value that cannot be told apart from others by comparing it, or that cannot be kept."""


class PromptCache:
    """The newest results of one pipeline's `encode_prompt`, up to a number of bytes."""

    def __init__(self, pipe: Any, variant: Callable[[], Hashable]) -> None:
        """Stand in front of the pipeline's method, if it has one.

        Args:
            pipe: The pipeline.
            variant: Says what else decides on the result, such as the adapters that act.
        """
        self._capacity = 0
        self._variant = variant
        self._results: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0
        self._use = PromptUse()
        encode = getattr(pipe, "encode_prompt", None)
        if encode is not None:
            pipe.encode_prompt = self._in_front_of(encode)

    def keep(self, capacity_bytes: int) -> None:
        """Begin to keep results, of so many bytes together; 0: none, as before the first call."""
        self._capacity = capacity_bytes
        self.clear()

    def take_use(self) -> PromptUse:
        """Say what was encoded and what reused since it was last asked."""
        use, self._use = self._use, PromptUse()
        return use

    def clear(self) -> None:
        """Forget all results, and what a generation that failed has used."""
        self._results.clear()
        self._bytes = 0
        self._use = PromptUse()

    def _in_front_of(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def encode_or_reuse(*args: Any, **kwargs: Any) -> Any:
            try:
                asked = _plain(dict(signature.bind(*args, **kwargs).arguments))
            except _NotPlain:
                return encode(*args, **kwargs)
            key = (self._variant(), asked)
            if key in self._results:
                self._use = dataclasses.replace(self._use, reused=self._use.reused + 1)
                self._results.move_to_end(key)
                return _given(self._results[key])
            made = encode(*args, **kwargs)
            self._use = dataclasses.replace(self._use, encoded=self._use.encoded + 1)
            self._keep(key, made)
            return made

        return encode_or_reuse

    def _keep(self, key: Hashable, made: Any) -> None:
        try:
            kept = _kept(made)
        except _NotPlain:
            return
        size = _size(kept)
        if size > self._capacity:
            return
        self._results[key] = kept
        self._bytes += size
        while self._bytes > self._capacity:
            _, oldest = self._results.popitem(last=False)
            self._bytes -= _size(oldest)


def _plain(value: Any) -> Hashable:
    """Turn arguments into something that is equal exactly where they are."""
    match value:
        case None | bool() | int() | float() | str() | torch.device() | torch.dtype():
            # With the type: True, 1 and 1.0 are equal, and a pipeline may tell them apart.
            return type(value), value
        case list() | tuple():
            return tuple(_plain(each) for each in value)
        case dict():
            return tuple((name, _plain(each)) for name, each in sorted(value.items()))
        case _:
            raise _NotPlain


def _kept(made: Any) -> Any:
    match made:
        case None:
            return None
        case torch.Tensor():
            # A copy: pipelines may write into what they are given.
            return _Kept(made.detach().to("cpu", copy=True), made.device)
        case list():
            return [_kept(each) for each in made]
        case tuple():
            return tuple(_kept(each) for each in made)
        case _:
            raise _NotPlain


def _given(kept: Any) -> Any:
    match kept:
        case _Kept():
            return kept.tensor.to(kept.device, copy=True)
        case list():
            return [_given(each) for each in kept]
        case tuple():
            return tuple(_given(each) for each in kept)
        case _:
            return None


def _size(kept: Any) -> int:
    match kept:
        case _Kept():
            return kept.tensor.nbytes
        case list() | tuple():
            return sum(_size(each) for each in kept)
        case _:
            return 0
