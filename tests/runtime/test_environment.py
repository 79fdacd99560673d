"""What a rank sees to before torch is loaded."""

from __future__ import annotations

import contextlib
import gc
import importlib
import subprocess
import sys
import weakref

import pytest

from ditcast_runtime.environment import uncollected_imports


class Circle:
    """Garbage that only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("module", ["colorsys", "no_such_module"])
def test_what_is_imported_stays_and_later_garbage_goes(module: str) -> None:
    """Nothing is collected meanwhile, nor that later; what comes after is, as ever."""
    with contextlib.suppress(ImportError), uncollected_imports():
        assert not gc.isenabled()
        imported = weakref.ref(Circle())
        importlib.import_module(module)
    try:
        assert gc.isenabled()
        later = weakref.ref(Circle())
        gc.collect()
        assert imported() is not None
        assert later() is None
    finally:
        gc.unfreeze()


def test_the_service_starts_without_what_only_clients_draw_with() -> None:
    """It costs each start as much as the rest of the log; afterwards it is there for who asks."""
    asked = """
import sys
from ditcast_runtime.environment import uncollected_imports
with uncollected_imports():
    from ditcast_service import lifecycle
assert [name for name in sys.modules if name.partition(".")[0] == "rich"] == []
import rich.console
"""
    subprocess.run([sys.executable, "-c", asked], check=True)
