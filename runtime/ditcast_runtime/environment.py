"""What a rank sees to before torch is loaded: its environment, and that it outlives nobody."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with_the_parent() -> None:
    """Have the kernel kill this process when its starter dies, also while it holds the GIL."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def uncollected_imports() -> Iterator[None]:
    """Import what stays for good while the context lasts: no collection walks it, then or later.

    torch, diffusers and cache-dit make so many objects, and throw away so few of them, that a
    quarter of the time until a pipeline is loaded goes into looking for garbage among them. rich,
    which clients draw with, is left out: structlog would import it for tracebacks that nobody asks
    for, which takes as long as the rest of it.
    """
    gc.disable()
    absent: dict[str, Any] = {} if "rich" in sys.modules else {"rich": None}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name)
        gc.freeze()
        gc.enable()


def rank_environment(given: Mapping[str, str], threads: int, interface: str) -> dict[str, str]:
    """Give a rank's environment: the given one, with what ranks need.

    `interface` is the network interface that gloo and NCCL are bound to. Empty: as given; they then
    listen on whatever the host's name resolves to, if nothing is.
    """
    quiet = {
        # It says several lines at each switch of the cache, at a level that a server keeps on.
        "CACHE_DIT_LOG_LEVEL": "error",
        # A thread that sleeps between two operations of a step costs as much to wake as a small
        # operation takes: steps took twice as long on two idle cores. So many turns are some 50 us.
        "GOMP_SPINCOUNT": "4000",
    }
    needed = {
        "OMP_NUM_THREADS": str(threads),
        # Threads that spin for as long as they wait made two ranks on shared cores 8 times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    bound = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return {**quiet, **given, **needed, **(bound if interface else {})}
