"""Figures and tables of what the sides were measured at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from benchmarks.figures import Figure, Point, Subject, Table
from benchmarks.peers.alone import Alone
from benchmarks.peers.pictures import distance
from benchmarks.peers.sides import Side
from benchmarks.peers.throughput import Block, Load
from benchmarks.plan import Plan
from benchmarks.processes import threads_of
from benchmarks.ratio import NotComparable

_GENERATION_MS = 25.0
_STEP_MS = 0.3
"""What ditcast may add: to a generation, and to each of its steps."""

_BATCHED_GAIN = 1.3
_OF_BATCHED_CALL = 0.9


def _subject() -> Subject:
    return Subject("peers", 1, threads_of(1))


def alone_figures(sides: Sequence[Side], rounds: Sequence[Alone], plan: Plan) -> list[Figure]:
    """Say what each side takes for one request, and what it adds to the direct call."""
    subject = _subject()
    figures = [
        subject.figure(
            "peers_alone_direct",
            "Alone: the pipeline called directly",
            "ms",
            [one.direct_seconds * 1000 for one in rounds],
            note="no PNG: the limit",
        )
    ]
    for index, side in enumerate(sides):
        added = [one.seconds[side.name] - one.direct_seconds for one in rounds]
        figures += [
            subject.figure(
                f"peers_alone_{side.name}",
                f"Alone: {side.title}",
                "ms",
                [one.seconds[side.name] * 1000 for one in rounds],
                note="at the client, with PNG",
            ),
            subject.figure(
                f"peers_added_{side.name}",
                f"Alone: {side.title} less direct",
                "ms",
                [seconds * 1000 for seconds in added],
                target=None if index else _GENERATION_MS + plan.peer_steps * _STEP_MS,
                note="of the same rounds",
            ),
        ]
    return figures


def throughput_figures(
    sides: Sequence[Side], batching: Sequence[Side], blocks: Sequence[Block], compared: int
) -> list[Figure]:
    """Give rates and latencies of each side, and ditcast's rate as a multiple of the others'.

    At `compared` clients there are targets.
    """
    subject = _subject()
    counts = sorted({clients for _, clients in blocks[0].loads})
    figures: list[Figure] = []
    for clients in counts:
        for side in (*sides, *batching):
            figures += _load_figures(subject, side, clients, blocks)
        own, *rivals = sides
        for rival in rivals:
            for ours, target in ((own, 1.0), *((each, _BATCHED_GAIN) for each in batching)):
                wanted = target if clients == compared else None
                figures.append(_gain(subject, ours, rival, clients, blocks, wanted))
    figures.append(
        subject.figure(
            "peers_batched_call",
            "The direct call with a batch of 8",
            "pictures/s",
            [block.batch_rate for block in blocks],
            note="what batching can give",
        )
    )
    return figures + [
        subject.figure(
            "peers_of_batched_call",
            f"{side.title}, {compared} clients, to the direct batched call",
            "x",
            [_rate(block, side, compared) / block.batch_rate for block in blocks],
            target=_OF_BATCHED_CALL,
            at_least=True,
        )
        for side in batching
        if compared in counts
    ]


def _load_figures(
    subject: Subject, side: Side, clients: int, blocks: Sequence[Block]
) -> Iterable[Figure]:
    loads = [block.loads[side.name, clients] for block in _with(blocks, clients)]

    def figure(name: str, words: str, unit: str, values: Callable[[Load], list[float]]) -> Figure:
        return subject.figure(
            f"peers_{name}_{side.name}_{clients}",
            f"{words}, {clients} clients: {side.title}",
            unit,
            [value for load in loads for value in values(load)],
            point=Point(plot=f"peers {name}", curve=side.title, axis="clients", at=clients),
        )

    yield figure("throughput", "Throughput", "pictures/s", lambda load: [load.rate])
    yield figure("latency", "Latency", "s", lambda load: load.latencies)


def _gain(
    subject: Subject,
    own: Side,
    rival: Side,
    clients: int,
    blocks: Sequence[Block],
    target: float | None,
) -> Figure:
    return subject.figure(
        f"peers_{own.name}_to_{rival.name}_{clients}",
        f"Throughput, {clients} clients: {own.title} to {rival.title}",
        "x",
        [
            _rate(block, own, clients) / _rate(block, rival, clients)
            for block in _with(blocks, clients)
        ],
        target=target,
        at_least=True,
        note="of the same blocks",
    )


def _with(blocks: Sequence[Block], clients: int) -> list[Block]:
    """Give the blocks that have so many clients."""
    return [block for block in blocks if any(count == clients for _, count in block.loads)]


def _rate(block: Block, side: Side, clients: int) -> float:
    return block.loads[side.name, clients].rate


def pixel_table(
    sides: Sequence[Side],
    rounds: Sequence[Alone],
    batching: Sequence[Side],
    blocks: Sequence[Block],
) -> Table:
    """Compare every picture of a side with ditcast's of the same seed.

    Raises:
        NotComparable: a side whose pictures have to be the same made others.
    """
    own, *rivals = sides
    rows = []
    for side in (*rivals, *batching):
        found = [one.differences[side.name] for one in rounds if side.name in one.differences]
        for block in blocks:
            found += _differences(block, own, side)
        same = sum(math.isinf(value) for value in found)
        if side.same_bits and same < len(found):
            raise NotComparable(f"{side.title} made other pictures than ditcast")
        lowest = "" if same == len(found) else f"{min(found):.1f} dB"
        rows.append((side.title, str(len(found)), str(same), lowest))
    columns = ("pictures of", "compared with ditcast's", "same pixels", "lowest PSNR of the others")
    return Table("Same seeds, same pixels", columns, tuple(rows))


def _differences(block: Block, own: Side, side: Side) -> list[float]:
    return [
        distance(picture, other)
        for (name, clients), load in block.loads.items()
        if name == side.name
        for seed, picture in load.pictures.items()
        for other in [block.loads[own.name, clients].pictures[seed]]
    ]
