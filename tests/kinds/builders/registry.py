"""Finds the function that makes a kind, by the kind's name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from tests.kinds.builders import images, videos


def builders() -> dict[str, Callable[[], object]]:
    """Give every function that makes a kind."""
    return {
        name: function
        for module in (images, videos)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
