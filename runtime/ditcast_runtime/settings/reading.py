"""Takes typed options out of the mappings of a settings file, and collects what is wrong.

Knows nothing of cache-dit: only places in a file, keys, types, and the problems they can have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from typing import TypeVar, get_args, get_type_hints

import msgspec

from ditcast_runtime.settings.problems import INT64_MAX, Problem, nearest, shown

T = TypeVar("T")

_NUMBER_IN_TEXT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of a file, and where it stands there."""

    place: str
    value: object


Section = dict[str, Entry]
"""The entries of one mapping by their keys; taken ones are removed, what is left is unknown."""


def read_section(value: object, place: str, problems: list[Problem]) -> Section:
    """Take a mapping apart; null is an empty one, and anything else a problem."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        problems.append(Problem(place, f"expected a mapping of options, got {_kind(value)}"))
        return {}
    prefix = f"{place}." if place else ""
    return {str(key): Entry(f"{prefix}{key}", item) for key, item in value.items()}


def read_options(
    section: Section, cls: type[T], keys: Mapping[str, str], problems: list[Problem]
) -> T:
    """Build a `cls` from the entries that `keys` (field name to key) names, and take them out.

    A null leaves the default, except where the field can be None and is not by default. A value of
    the wrong type becomes a problem and leaves the default too.
    """
    hints = get_type_hints(cls)
    options: dict[str, object] = {}
    for field, key in keys.items():
        entry = section.pop(key, None)
        if entry is None or (entry.value is None and not _none_differs(cls, field, hints[field])):
            continue
        if (value := read_value(entry, hints[field], problems)) is not problems:
            options[field] = value
    return msgspec.convert(options, cls)


def read_value(entry: Entry, kind: object, problems: list[Problem]) -> object:
    """Give the value as the type wants it, or the list of problems itself if it is not of it."""
    try:
        value: object = msgspec.convert(entry.value, kind)
    except (msgspec.ValidationError, RecursionError) as err:
        reason, _, path = str(err).partition(" - at `$")
        problems.append(Problem(f"{entry.place}{path.rstrip('`')}", _explain(entry.value, reason)))
        return problems
    if _too_large(value):
        problems.append(Problem(entry.place, "it holds a number that does not fit in 64 bits"))
        return problems
    return value


def read_pairs(
    section: Section, key: str, value_kind: object, problems: list[Problem]
) -> tuple[tuple[str, object], ...] | None:
    """Take a mapping of names to scalars as pairs sorted by name; None where there is none."""
    entry = section.pop(key, None)
    if entry is None or entry.value is None:
        return None
    pairs = [
        (name, read_value(item, value_kind, problems))
        for name, item in sorted(read_section(entry.value, entry.place, problems).items())
    ]
    return tuple((name, value) for name, value in pairs if value is not problems)


def refuse_unknown(
    section: Section, known: Iterable[str], problems: list[Problem], ours: Mapping[str, str] = {}
) -> None:
    """Report every entry that nobody took, each with the nearest known key.

    Args:
        section: What is left of it.
        known: All keys that the section can have.
        problems: Where to report.
        ours: Our own field names that the format spells differently.
    """
    known = tuple(known)
    for key, entry in section.items():
        meant = f"; did you mean {ours[key]}?" if key in ours else nearest(key, known)
        problems.append(Problem(entry.place, f"unknown key{meant}"))


def _none_differs(cls: type, field: str, hint: object) -> bool:
    """Tell whether None is a value of its own for this field, rather than "unset"."""
    fields = getattr(cls, "__dataclass_fields__", {})
    default = fields[field].default if field in fields else None
    return default is not None and default is not MISSING and type(None) in get_args(hint)


def _too_large(value: object) -> bool:
    """Tell whether a whole number in it could not travel between the processes."""
    if isinstance(value, tuple):
        return any(_too_large(item) for item in value)
    return isinstance(value, int) and abs(value) > INT64_MAX


def _explain(value: object, reason: str) -> str:
    """Turn msgspec's message into a sentence of ours."""
    sentence = reason.replace("`", "").replace("Expected", "expected").replace("object", "mapping")
    if isinstance(value, str) and _NUMBER_IN_TEXT.fullmatch(value):
        sentence += f": YAML reads {value} as text, write it with a point and a sign (1.0e-8)"
    return sentence


def _kind(value: object) -> str:
    """Name a value's kind in the words of YAML and JSON."""
    return "text" if isinstance(value, str) else shown(value)
