"""A campaign is a function of its seed, and has all there is to have."""

from __future__ import annotations

import itertools
from collections import Counter

from tests.campaigns.plan import ActKind, FaultKind, acts, faults


def test_the_same_seed_plans_the_same() -> None:
    """Faults and acts, each client's its own; another seed plans another campaign."""
    assert faults(1, 50, 2) == faults(1, 50, 2) != faults(2, 50, 2)
    first, again, other, second = (
        list(itertools.islice(acts(seed, client), 100))
        for seed, client in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    assert first == again
    assert first not in (other, second)
    assert {act.kind for act in first} == set(ActKind)


def test_each_kind_comes_as_often_as_the_others() -> None:
    """200 faults over three world sizes have each kind 10 times and more."""
    counts = Counter(fault.kind for size in (1, 2, 3) for fault in faults(size, 70, size))
    assert set(counts) == set(FaultKind)
    assert min(counts.values()) >= 10
    assert counts.total() >= 200


def test_ranks_and_places_are_spread() -> None:
    """All ranks are hit, and some faults of each kind come before the last is mended."""
    planned = faults(3, 200, 3)
    assert {fault.rank for fault in planned} == {0, 1, 2}
    assert {fault.kind for fault in planned if fault.hurries} == set(FaultKind)
