"""The adapters that all ranks hold: kept here, where the ranks' end cannot touch them.

Every change is an order to all ranks between two generations, and holds on all of them or none;
fresh ranks get the same orders before they serve.
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

    def __init__(self, adapter: Adapter, *, loads: bool) -> None:
        super().__init__()
        self.adapter = adapter
        self.loads = loads


class LoadedAdapters:
    """What is loaded, in the order of loading, and the orders that change it."""

    def __init__(self, initial: Iterable[Adapter]) -> None:
        """Begin with those that the first ranks are to hold."""
        self._kept = {adapter.name: adapter for adapter in initial}

    @property
    def all(self) -> tuple[Adapter, ...]:
        """Those that the ranks hold, or will hold again."""
        # Without components it has never been loaded: the first ranks are not there yet.
        return tuple(adapter for adapter in self._kept.values() if adapter.components)

    def get(self, name: str) -> Adapter | None:
        """Give the one of a name."""
        return self._kept.get(name)

    def hold(self, uses: Iterable[AdapterUse]) -> bool:
        """Say whether these very adapters are loaded, not others under their names."""
        digests = {name: adapter.weights_digest for name, adapter in self._kept.items()}
        return all(digests.get(use.name) == use.weights_digest for use in uses)

    async def apply(self, group: Group, change: AdapterChange, number: Number) -> None:
        """Load or unload on all ranks or none, and tell who asked.

        Raises:
            GroupLost: the ranks died with it.
        """
        adapter = change.adapter
        try:
            if change.loads:
                adapter = await _load(group, adapter, number())
            else:
                await _unload(group, adapter, number())
        except RuntimeFailure as failure:
            change.fail(failure)
            return
        if not change.given_up:
            self._commit(adapter, loads=change.loads)
            change.succeed()
        elif change.loads:
            await _unload(group, adapter, number())
        else:
            await _load(group, adapter, number())

    async def restore(self, group: Group, number: Number, *, required: bool) -> None:
        """Have fresh ranks hold what is loaded; what they cannot is dropped.

        Raises:
            CannotLoad: they cannot hold one, and all are `required`.
            GroupLost: the ranks died meanwhile.
        """
        for adapter in tuple(self._kept.values()):
            try:
                self._kept[adapter.name] = await _load(group, adapter, number())
            except RuntimeFailure as failure:
                if required:
                    raise CannotLoad(0, "adapter", str(failure)) from failure
                # Its file is gone or another: who names it from now on is told that it is unknown.
                del self._kept[adapter.name]
                log.error("adapter lost", adapter=adapter.name, error=str(failure))  # noqa: TRY400

    def _commit(self, adapter: Adapter, *, loads: bool) -> None:
        if loads:
            self._kept[adapter.name] = adapter
        else:
            del self._kept[adapter.name]
        event = "adapter loaded" if loads else "adapter unloaded"
        log.info(event, adapter=adapter.name, file=adapter.file, components=adapter.components)


async def _load(group: Group, adapter: Adapter, number: int) -> Adapter:
    order = LoadAdapter(
        epoch=group.epoch,
        number=number,
        name=adapter.name,
        path=adapter.path,
        weights_digest=adapter.weights_digest,
    )
    return dataclasses.replace(adapter, components=await _carry_out(group, order))


async def _unload(group: Group, adapter: Adapter, number: int) -> None:
    order = UnloadAdapter(epoch=group.epoch, number=number, name=adapter.name)
    await _carry_out(group, order)


async def _carry_out(group: Group, order: LoadAdapter | UnloadAdapter) -> tuple[str, ...]:
    """Give an order to all ranks; give what a loaded adapter changes.

    Raises:
        OutOfMemory: some ranks have too little for it; none holds it.
        AdapterRefused: some rank cannot; none holds it.
    """
    components: tuple[str, ...] = ()
    failures: list[Failed] = []
    async with aclosing(group.run(order, None)) as reports:
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
