"""What the ranks wait for between two queued generations, and that encoding is no part of it."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, Subject
from benchmarks.plan import Plan, Tick
from benchmarks.processes import serving, threads_of
from benchmarks.requests import Served, generation, serve
from ditcast.v1.generation_pb2 import OutputFormat
from ditcast_client import Client

_WATCH = Path(__file__).with_name("overlap_watch")
_TARGET = 2.0
"""Milliseconds."""

_STEPS = 2
"""The fewest that the model's scheduler makes."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A sort of generation that is queued back to back."""

    name: str
    words: str
    side: int
    format: OutputFormat.ValueType


_SMALL = _Kind("small", "128x128, PNG", 128, OutputFormat.OUTPUT_FORMAT_PNG)
_LARGE = (
    _Kind("large_png", "384x384, PNG", 384, OutputFormat.OUTPUT_FORMAT_PNG),
    _Kind("large_raw", "384x384, not encoded", 384, OutputFormat.OUTPUT_FORMAT_RAW_RGB8),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gap:
    """From the end of one generation on rank 0 to the next one's begin; seconds."""

    whole: float
    report: float
    """The rank makes its last report, memory included."""
    clean_up: float
    """The rank frees what the generation held."""
    late: float
    """How long the rank then waits until the service has sent the next command; 0: it was there."""
    command: float
    """From then until the rank begins: receive, broadcast."""
    ahead: float
    """How long before the end the service had sent the next command; negative: after it."""
    hearing: float
    """From the last report until the service has those of all ranks: no part of the gap."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """Generations that were queued at once."""

    gaps: list[_Gap]
    served: list[Served]


class _Notes:
    """The file that the service and rank 0 add their notes to."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self._known = 0

    def pass_over(self) -> None:
        """Leave out what stands there already."""
        self._known = self.path.stat().st_size

    def added(self) -> list[str]:
        """Give the lines that have come since."""
        return self.path.read_bytes()[self._known :].decode().splitlines()


def ticks(plan: Plan) -> int:
    """Say how often `measure` calls its tick for one world size."""
    return plan.overlap_chains * (1 + len(_LARGE)) + 1


async def measure(plan: Plan, world_size: int, tick: Tick) -> list[Figure]:
    """Queue chains of generations, the large ones of both kinds by turns."""
    with tempfile.TemporaryDirectory(prefix="ditcast-bench-") as folder:
        notes = _Notes(Path(folder) / "notes")
        extra = {"PYTHONPATH": str(_WATCH), "OVERLAP_NOTES": str(notes.path)}
        async with serving(world_size, extra=extra) as server, Client(server.address) as client:
            chains: dict[str, list[_Chain]] = {}
            await _chain(client, notes, _SMALL, 2)  # Switches the cache off.
            tick()
            for number in range(plan.overlap_chains):
                large = _LARGE if number % 2 else _LARGE[::-1]
                for kind in (_SMALL, *large):
                    chain = await _chain(client, notes, kind, plan.overlap_length)
                    chains.setdefault(kind.name, []).append(chain)
                    tick()
    return _figures(world_size, chains)


async def _chain(client: Client, notes: _Notes, kind: _Kind, length: int) -> _Chain:
    notes.pass_over()
    made = [
        generation(client, steps=_STEPS, seed=seed, side=kind.side, output_format=kind.format)
        for seed in range(length)
    ]
    served = await asyncio.gather(*map(serve, made))
    return _Chain(_gaps(notes.added()), list(served))


def _gaps(notes: list[str]) -> list[_Gap]:
    """Read the gaps off the notes of one chain."""
    moments: dict[int, dict[str, float]] = {}
    for line in notes:
        what, number, moment = line.split()
        moments.setdefault(int(number), {})[what] = float(moment)
    # What the one before this chain noted last is no generation of it.
    chain = [moments[number] for number in sorted(moments) if "begun" in moments[number]]
    return [_gap(before, after) for before, after in itertools.pairwise(chain)]


def _gap(before: dict[str, float], after: dict[str, float]) -> _Gap:
    return _Gap(
        whole=after["begun"] - before["ran"],
        report=before["telling"] - before["ran"],
        clean_up=before["clean"] - before["cleaning"],
        late=max(0.0, after["sent"] - before["clean"]),
        command=after["begun"] - max(after["sent"], before["clean"]),
        ahead=before["ran"] - after["sent"],
        hearing=before["heard"] - before["telling"],
    )


_STAGES: tuple[tuple[str, str, Callable[[_Gap], float]], ...] = (
    ("report", "of which making the last report", lambda gap: gap.report),
    ("clean_up", "of which cleaning up", lambda gap: gap.clean_up),
    ("late", "of which waiting for the service to send the next", lambda gap: gap.late),
    ("command", "of which receiving and broadcasting it", lambda gap: gap.command),
    ("ahead", "Sent so long before the vote that ends one", lambda gap: gap.ahead),
    ("hearing", "Until the service has heard of that from all ranks", lambda gap: gap.hearing),
)


def _figures(world_size: int, chains: dict[str, list[_Chain]]) -> list[Figure]:
    subject = Subject("overlap", world_size, threads_of(world_size))
    gaps = {
        name: [gap for chain in listed for gap in chain.gaps] for name, listed in chains.items()
    }
    wholes = [
        subject.figure(
            f"gap_{kind.name}_{world_size}",
            f"Gap between two queued generations, {kind.words}",
            "ms",
            [gap.whole * 1000 for gap in gaps[kind.name]],
            target=_TARGET,
            note="on rank 0: from the vote that ends one to the first line of the next",
        )
        for kind in (_SMALL, *_LARGE)
    ]
    stages = [
        subject.figure(
            f"gap_{name}_{world_size}",
            title,
            "ms",
            [stage(gap) * 1000 for gap in gaps[_SMALL.name]],
            note=f"of the gaps with {_SMALL.words}",
        )
        for name, title, stage in _STAGES
    ]
    return [wholes[0], *stages, *wholes[1:], *_encoding(subject, chains)]


def _encoding(subject: Subject, chains: dict[str, list[_Chain]]) -> list[Figure]:
    """Set beside each other what encoding takes and what it adds to the gap."""
    encoded, raw = (chains[kind.name] for kind in _LARGE)
    return [
        subject.figure(
            f"gap_encode_{subject.world_size}",
            f"Encoding and hashing, {_LARGE[0].words}",
            "ms",
            [run.encode_seconds * 1000 for chain in encoded for run in chain.served],
            note="`encode` of `Timings`: what the gap would hold if the ranks waited for it",
        ),
        subject.figure(
            f"gap_encoding_adds_{subject.world_size}",
            "What encoding adds to the gap",
            "ms",
            [
                (statistics.median(with_it) - statistics.median(without)) * 1000
                for with_it, without in zip(map(_wholes, encoded), map(_wholes, raw), strict=True)
            ],
            note="medians of chains, with PNG less without, paired",
        ),
    ]


def _wholes(chain: _Chain) -> list[float]:
    return [gap.whole for gap in chain.gaps]
