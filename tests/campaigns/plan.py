"""What a chaos campaign does: a pure function of its seed, so that every campaign can be replayed.

Which faults in which order, on which rank, where and after how long a pause; and what each client
does, one act after the other, for as long as the faults last.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.campaigns.recipes import CACHES, RECIPES, STEPS

CLIENTS = 4
_HURRIES = 0.2
"""The part of faults that do not wait until the one before is mended."""


class FaultKind(enum.StrEnum):
    """What goes wrong."""

    KILL = "kill a rank"
    STOP = "stop a rank"
    HANG = "hang on a rank"
    RAISE_BEFORE = "raise before a collective"
    RAISE_INSIDE = "raise inside a collective"
    RAISE_AFTER = "raise after a collective"
    RAISE_ALL = "raise on all ranks"
    MEMORY_ONE = "out of memory on a rank"
    MEMORY_ALL = "out of memory on all ranks"
    KILL_SERVICE = "kill the service"
    END_SERVICE = "end the service"


SIGNALS = frozenset({FaultKind.KILL, FaultKind.STOP})
"""Those that come from outside, at whatever the rank is doing; the others a request id asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault."""

    number: int
    kind: FaultKind
    rank: int
    place: str
    """Where a rank fails that is asked to by a request id; see `tests/distributed/faults`."""
    step: int
    recipe: str
    """What the generation that asks for it makes."""
    pause: float
    """Seconds from when the one before was mended, or from its strike if it hurries."""
    hurries: bool


class ActKind(enum.StrEnum):
    """What a client does."""

    GENERATE = "generate"
    CANCEL = "cancel"
    DISCONNECT = "disconnect"
    REATTACH = "re-attach"
    WATCH = "watch"
    CONFIGURE = "configure"


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """One act of one client."""

    kind: ActKind
    recipe: str
    after: int
    """Events after which it cancels, disconnects or loses its connection."""
    cache: str
    """What it configures."""


def faults(seed: int, count: int, world_size: int) -> tuple[Fault, ...]:
    """Plan the faults: every kind once before any comes again, in another order each time."""
    dice = random.Random(f"faults {seed}")  # noqa: S311 (a campaign repeats itself)
    deck: list[FaultKind] = []
    while len(deck) < count:
        deck += dice.sample(tuple(FaultKind), len(FaultKind))
    planned: list[Fault] = []
    for number, kind in enumerate(deck[:count]):
        place = _place(kind, dice)
        planned.append(
            Fault(
                number=number,
                kind=kind,
                rank=dice.randrange(world_size),
                place=place,
                # The block that fails inside may not run in later steps, which the cache serves.
                step=dice.randint(1, 2 if place == "inside" else STEPS),
                recipe=dice.choice(tuple(RECIPES)),
                pause=dice.uniform(0.2, 4.0),
                hurries=dice.random() < _HURRIES,
            )
        )
    return tuple(planned)


def acts(seed: int, client: int) -> Iterator[Act]:
    """Give what a client does, without end."""
    dice = random.Random(f"client {client} {seed}")  # noqa: S311 (as above)
    while True:
        yield Act(
            kind=dice.choices(tuple(ActKind), weights=(4, 2, 2, 3, 1, 1))[0],
            recipe=dice.choice(tuple(RECIPES)),
            after=dice.randint(1, STEPS),
            cache=dice.choice(tuple(CACHES)),
        )


def _place(kind: FaultKind, dice: random.Random) -> str:
    match kind:
        case FaultKind.RAISE_BEFORE:
            return "before"
        case FaultKind.RAISE_INSIDE:
            return "inside"
        case FaultKind.RAISE_AFTER:
            return "after"
        case FaultKind.HANG | FaultKind.RAISE_ALL:
            return dice.choice(("prepare", "inside", "decode"))
        case FaultKind.MEMORY_ONE | FaultKind.MEMORY_ALL:
            return dice.choice(("inside", "decode"))
        case _:
            return ""
