"""Adapters as callers see them: listed, loaded and unloaded by name, and chosen by requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Protocol

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast_runtime.config import Adapter
from ditcast_runtime.errors import InvalidRequest
from ditcast_runtime.generation import AdapterUse, AdapterWeight
from ditcast_runtime.messages import Facts
from ditcast_runtime.settings import Problem
from ditcast_runtime.settings.problems import nearest
from ditcast_service.adapter_folders import NAME_PATTERN, NAME_REASON, AdapterFolders
from ditcast_service.configure import before_deadline

MAX_WEIGHT = 10.0


class AdapterEngine(Protocol):
    """What these calls need of the engine."""

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Those that are loaded, in the order of loading."""
        ...

    async def load_adapter(self, adapter: Adapter) -> Adapter:
        """Load one on all ranks or none; one writer at a time."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Remove one from all ranks; one writer at a time."""
        ...


async def load(
    engine: AdapterEngine,
    folders: AdapterFolders,
    request: pb.LoadAdapterRequest,
    seconds_left: float | None,
) -> pb.LoadAdapterResponse:
    """Load an adapter from a listed file.

    Raises:
        InvalidRequest: its name cannot be, or something is missing.
        NotAppliedInTime: the caller's deadline came first, and nothing was changed.
        RuntimeFailure: as the folders and the engine.
    """
    problems = [] if NAME_PATTERN.fullmatch(request.name) else [Problem("name", NAME_REASON)]
    if not request.file:
        problems.append(Problem("file", "it is required"))
    if problems:
        raise InvalidRequest(tuple(problems))
    async with before_deadline(seconds_left):
        adapter = await asyncio.to_thread(folders.find, request.name, request.file)
        loaded = await engine.load_adapter(adapter)
    return pb.LoadAdapterResponse(adapter=_to_proto(loaded))


async def unload(
    engine: AdapterEngine, request: pb.UnloadAdapterRequest, seconds_left: float | None
) -> pb.UnloadAdapterResponse:
    """Remove an adapter.

    Raises:
        InvalidRequest: its name is missing.
        NotAppliedInTime: the caller's deadline came first, and nothing was changed.
        RuntimeFailure: as the engine.
    """
    if not request.name:
        raise InvalidRequest((Problem("name", "it is required"),))
    async with before_deadline(seconds_left):
        await engine.unload_adapter(request.name)
    return pb.UnloadAdapterResponse()


async def listing(engine: AdapterEngine, folders: AdapterFolders) -> pb.ListAdaptersResponse:
    """List what is loaded, and the files that could be."""
    found = await asyncio.to_thread(folders.available)
    available = []
    for file, path in found.items():
        try:
            size = path.stat().st_size
        except OSError:
            continue  # Gone since it was listed.
        available.append(pb.AdapterFile(file=file, size_bytes=size))
    return pb.ListAdaptersResponse(
        loaded=[_to_proto(adapter) for adapter in engine.adapters], available=available
    )


def resolve_adapters(
    asked: Sequence[AdapterWeight],
    loaded: Sequence[Adapter],
    facts: Facts,
    problems: list[Problem],
) -> tuple[AdapterUse, ...]:
    """Find what a request asks for among what is loaded, and add what is wrong with it."""
    if asked and not facts.adapters_supported:
        reason = f"{facts.pipeline_class} takes no adapters"
        problems.append(Problem("adapters", reason, "unsupported"))
        return ()
    known = {adapter.name: adapter for adapter in loaded}
    uses: dict[str, AdapterUse] = {}
    for index, each in enumerate(asked):
        adapter = known.get(each.name)
        path = f"adapters[{index}]"
        if not (math.isfinite(each.weight) and abs(each.weight) <= MAX_WEIGHT):
            reason = f"{each.weight:g} is out of range: {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
            problems.append(Problem(f"{path}.weight", reason))
        if each.name in uses:
            problems.append(Problem(f"{path}.name", f"{each.name} stands there twice"))
        elif adapter is None:
            reason = f"no adapter is loaded under {each.name!r:.80}{nearest(each.name, known)}"
            problems.append(Problem(f"{path}.name", reason))
        else:
            uses[each.name] = AdapterUse(
                name=each.name, weight=each.weight, weights_digest=adapter.weights_digest
            )
    return tuple(uses.values())


def _to_proto(adapter: Adapter) -> pb.Adapter:
    return pb.Adapter(
        name=adapter.name,
        file=adapter.file,
        weights_digest=adapter.weights_digest,
        size_bytes=adapter.size_bytes,
        components=adapter.components,
    )
