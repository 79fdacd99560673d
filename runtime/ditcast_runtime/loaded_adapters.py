"""The adapters that all ranks hold: kept here, where the ranks' end cannot touch them.

Every change is an order to all ranks between two generations, and holds on all of them or none;
fresh ranks get the same orders before they serve, and so do those that hold something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import aclosing

import structlog

from ditcast_runtime.change import Pending
from ditcast_runtime.config import Adapter
from ditcast_runtime.errors import AdapterRefused, OutOfMemory, RuntimeFailure
from ditcast_runtime.generation import AdapterUse
from ditcast_runtime.group import CannotLoad, Group
from ditcast_runtime.messages import Ended, Failed, FailureKind, LoadAdapter, UnloadAdapter

log = structlog.get_logger()

Number = Callable[[], int]
"""Gives the next order's number."""


class AdapterChange(Pending):
    """A load, or an unload, on its way into force."""

    subject = "file"

    def __init__(
        self, adapter: Adapter, *, loads: bool, commit: Callable[[AdapterChange], None]
    ) -> None:
        super().__init__(lambda: commit(self))
        self.adapter = adapter
        """Once ranks hold it, with the components that it changes."""
        self.loads = loads


class LoadedAdapters:
    """What is loaded, in the order of loading."""

    def __init__(self, initial: Iterable[Adapter]) -> None:
        """Begin with those that the first ranks are to hold."""
        self._kept = {adapter.name: adapter for adapter in initial}

    @property
    def all(self) -> tuple[Adapter, ...]:
        """Those that the ranks hold, or will hold again."""
        # Without components it has never been loaded: the first ranks are not there yet.
        return tuple(adapter for adapter in self._kept.values() if adapter.components)

    @property
    def kept(self) -> tuple[Adapter, ...]:
        """Those that every group is to hold, before any does too."""
        return tuple(self._kept.values())

    def get(self, name: str) -> Adapter | None:
        """Give the one of a name."""
        return self._kept.get(name)

    def hold(self, uses: Iterable[AdapterUse]) -> bool:
        """Say whether these very adapters are loaded, not others under their names."""
        digests = {name: adapter.weights_digest for name, adapter in self._kept.items()}
        return all(digests.get(use.name) == use.weights_digest for use in uses)

    def found(self, adapter: Adapter) -> None:
        """Take in what fresh ranks say of one, unless it went while they loaded it."""
        known = self._kept.get(adapter.name)
        if known is not None and known.weights_digest == adapter.weights_digest:
            self._kept[adapter.name] = adapter

    def drop(self, adapter: Adapter, why: RuntimeFailure) -> None:
        """Forget one that ranks cannot hold again; who names it is told that it is unknown."""
        self._kept.pop(adapter.name, None)
        log.error("adapter lost", adapter=adapter.name, error=str(why))

    def commit(self, change: AdapterChange) -> None:
        """Count it as loaded, or as unloaded, now that all ranks agree."""
        adapter = change.adapter
        if change.loads:
            self._kept[adapter.name] = adapter
        else:
            self._kept.pop(adapter.name, None)
        event = "adapter loaded" if change.loads else "adapter unloaded"
        log.info(event, adapter=adapter.name, file=adapter.file, components=adapter.components)


class HeldAdapters:
    """The adapters that the ranks of one group hold, and the orders that change them."""

    def __init__(self, loaded: LoadedAdapters, group: Group, number: Number) -> None:
        """Begin with fresh ranks, which hold none."""
        self._loaded = loaded
        self._group = group
        self._number = number
        self._held: dict[str, str] = {}
        """The digest of each, by its name."""

    @property
    def complete(self) -> bool:
        """Whether they are those that are loaded, and no others."""
        return self._held == {each.name: each.weights_digest for each in self._loaded.kept}

    async def carry_out(self, change: AdapterChange) -> None:
        """Load or unload on all ranks of the group or none.

        Raises:
            RuntimeFailure: they cannot.
            GroupLost: the ranks died with it.
        """
        if change.loads:
            change.adapter = await self._load(change.adapter)
        else:
            await self._unload(change.adapter.name)

    async def restore(self, *, required: bool) -> None:
        """Have the ranks hold what is loaded, and nothing else; what they cannot is dropped.

        Raises:
            CannotLoad: they cannot hold one, and all are `required`.
            GroupLost: the ranks died meanwhile.
        """
        kept = {each.name: each.weights_digest for each in self._loaded.kept}
        for name in [name for name, digest in self._held.items() if kept.get(name) != digest]:
            await self._unload(name)
        for adapter in self._loaded.kept:
            if adapter.name in self._held:
                continue
            try:
                self._loaded.found(await self._load(adapter))
            except RuntimeFailure as failure:
                if required:
                    raise CannotLoad(0, "adapter", str(failure)) from failure
                self._loaded.drop(adapter, failure)

    async def _load(self, adapter: Adapter) -> Adapter:
        order = LoadAdapter(
            epoch=self._group.epoch,
            number=self._number(),
            name=adapter.name,
            path=adapter.path,
            weights_digest=adapter.weights_digest,
        )
        components = await _carry_out(self._group, order)
        self._held[adapter.name] = adapter.weights_digest
        return dataclasses.replace(adapter, components=components)

    async def _unload(self, name: str) -> None:
        order = UnloadAdapter(epoch=self._group.epoch, number=self._number(), name=name)
        await _carry_out(self._group, order)
        self._held.pop(name, None)


async def _carry_out(group: Group, order: LoadAdapter | UnloadAdapter) -> tuple[str, ...]:
    """Give an order to all ranks; give what a loaded adapter changes.

    Raises:
        OutOfMemory: some ranks have too little for it; none holds it.
        AdapterRefused: some rank cannot; none holds it.
    """
    components: tuple[str, ...] = ()
    failures: list[Failed] = []
    group.begin(order)
    async with aclosing(group.reports(order.number)) as reports:
        async for report in reports:
            match report:
                case Failed():
                    failures.append(report)
                case Ended():
                    components = components or report.components
                case _:
                    pass
    short = [each.rank for each in failures if each.kind is FailureKind.OUT_OF_MEMORY]
    if short:
        raise OutOfMemory(tuple(sorted(short)))
    if failures:
        raise AdapterRefused(order.name, failures[0].message)
    return components
