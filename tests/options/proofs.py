"""What is known of each option: tests say what they prove; the table in the docs is made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ROOT = Path(__file__).parents[2]

PROVEN: dict[str, set[str]] = defaultdict(set)
"""Tests by the option whose effect they observe."""

REFUSED: dict[str, set[str]] = defaultdict(set)
"""Tests by the option whose refusal they observe."""


HANDED: dict[str, set[str]] = defaultdict(set)
"""Tests by the option that they see arrive at cache-dit, where its effect needs an accelerator."""


def proves(*options: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Say of which options a test observes the effect."""
    return _noting(PROVEN, options)


def refuses(*options: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Say which options a test sees refused, where they could not be had."""
    return _noting(REFUSED, options)


def hands_over(*options: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Say which options a test sees arrive at cache-dit."""
    return _noting(HANDED, options)


def _noting(
    notes: dict[str, set[str]], options: tuple[str, ...]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def note(test: Callable[P, R]) -> Callable[P, R]:
        file = Path(test.__code__.co_filename).relative_to(ROOT)
        for option in options:
            notes[option].add(f"{file}::{test.__name__}")
        return test

    return note
