"""Whether a generation begins again after its ranks were lost, or how it ends; nothing else."""

from __future__ import annotations

from ditcast_runtime.accepted import Generation
from ditcast_runtime.errors import LosesRanks, OutOfMemory, RanksLost, RuntimeFailure
from ditcast_runtime.messages import Failed, FailureKind


def verdict(
    generation: Generation,
    failures: list[Failed],
    world_size: int,
    max_attempts: int,
    unexplained: RanksLost,
) -> RuntimeFailure | None:
    """Say how a generation ends whose group was lost; None: it begins again.

    Begun again is only what has no explanation of its own: out of memory is one, and so is the same
    exception from all ranks. A report from some ranks only is none. What lost a group twice at the
    same stage would lose the next one too. Of a batch nobody knows whose fault it was, so that its
    generations begin again, each alone, whatever the explanation.
    """
    failures = failures if generation.batch_size == 1 else []
    short = tuple(sorted(f.rank for f in failures if f.kind is FailureKind.OUT_OF_MEMORY))
    if short:
        return OutOfMemory(short)
    if len(failures) == world_size and len({failure.error_type for failure in failures}) == 1:
        return LosesRanks(unexplained.epoch, failures[0].error_type)
    generation.lost_at.append(generation.stage)
    if generation.lost_at.count(generation.stage) > 1:
        return LosesRanks(unexplained.epoch, f"twice at the stage {generation.stage}")
    if generation.attempt - generation.spared >= max_attempts:
        return unexplained
    return None
