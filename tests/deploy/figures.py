"""What a query may ask for: the names of the service's own registry, and their labels."""

from __future__ import annotations

import re

from ditcast_service.metric_families import Families

NAME = re.compile(r"\b(?:ditcast|process)_\w+")

_SUFFIXES = {
    "histogram": ("_bucket", "_sum", "_count"),
    "counter": ("_total",),
}


def samples() -> dict[str, set[str]]:
    """List every name that a query may ask for, with its labels."""
    made = Families()
    labels = {family.name: {name for name, _ in family.labels} for family in made.described}
    found: dict[str, set[str]] = {}
    for family in made.registry.collect():
        for suffix in _SUFFIXES.get(family.type, ("",)):
            name = family.name + suffix
            own = labels.get(name, labels.get(family.name, set()))
            found[name] = own | ({"le"} if suffix == "_bucket" else set())
    return found


def labels_asked_for(query: str) -> set[str]:
    """List the labels that a query compares, sums or joins by."""
    asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query))
    for listed in re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", query):
        asked |= {label.strip() for label in listed.split(",")}
    return asked
