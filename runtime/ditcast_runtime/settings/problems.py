"""What is wrong with settings: one `Problem` a field, and the error that carries all of them.

Every check of this package collects problems instead of stopping at the first, because a caller
who repairs a file or a request one message at a time gives up.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

ProblemKind = Literal["invalid", "unsupported"]
"""`invalid`: the value can never be right here. `unsupported`: the pipeline, the machine or
cache-dit lacks the feature, whatever the value."""

INT32_MAX = 2**31 - 1
"""Largest whole number of a setting: what an int32 on the wire holds."""

INT64_MAX = 2**63 - 1
"""Largest whole number of a setting that counts bytes: what an int64 on the wire holds."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one field."""

    field: str
    """Where: a path in the file (`cache_config.Fn_compute_blocks`) or in the request
    (`cache.db_cache.fn_compute_blocks`)."""
    reason: str
    """Why, in a sentence that names the value and what would be right."""
    kind: ProblemKind = "invalid"
    """Whether the value is wrong, or something lacks the feature."""


class SettingsError(ValueError):
    """A settings file or mapping that cannot be used, with everything that is wrong with it.

    Attributes:
        problems: All problems, each once; never empty.
        source: The file, or whatever the settings came from.
    """

    def __init__(self, problems: tuple[Problem, ...], source: str = "") -> None:
        """Keep the problems and make one line of each for the message."""
        self.problems = problems
        self.source = source
        lines = [f"{problem.field}: {problem.reason}" for problem in problems]
        super().__init__("\n".join(f"{source}: {line}" if source else line for line in lines))


def shown(value: object) -> str:
    """Give a value as it can stand in a message: cut short, whatever a caller sent."""
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else reprlib.repr(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """Give `; did you mean x?` for the known name closest to a wrong one, else nothing."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def one_per_field(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Keep the first problem of each field: a caller gets one violation a field."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.field, problem)
    return tuple(first.values())


class Findings:
    """Collects the problems of one message, each under the message's own path."""

    def __init__(self, prefix: str) -> None:
        """Start with none; `prefix` is the path of the message, such as `cache.db_cache`."""
        self.prefix = prefix
        self.problems: list[Problem] = []

    def refuse(self, name: str, reason: str, kind: ProblemKind = "invalid") -> None:
        """Add a problem of the field `name`, or of the whole message where it is empty."""
        path = f"{self.prefix}.{name}" if name else self.prefix
        self.problems.append(Problem(path, reason, kind))

    def whole(self, name: str, value: int | None, low: int, high: int = INT32_MAX) -> bool:
        """Check a whole number against both ends; None is unset, and fine."""
        if value is None or (type(value) is int and low <= value <= high):
            return True
        bounds = f"at least {low}" if high >= INT32_MAX and value < low else f"{low} to {high}"
        self.refuse(name, f"{shown(value)} is out of range: it must be {bounds}")
        return False

    def real(
        self,
        name: str,
        value: float | None,
        *,
        low: float = 0,
        above: float | None = None,
        high: float = math.inf,
    ) -> bool:
        """Check a finite real number: from `low` or above `above`, to `high`; None is fine."""
        if value is None:
            return True
        least = f"at least {low:g}" if above is None else f"greater than {above:g}"
        wanted = least if high == math.inf else f"{least} and at most {high:g}"
        if not math.isfinite(value):
            self.refuse(name, f"{value!r} is no finite number: it must be {wanted}")
            return False
        if value > high or (value < low if above is None else value <= above):
            self.refuse(name, f"{value!r} is out of range: it must be {wanted}")
            return False
        return True

    def choice(self, name: str, value: str, allowed: Collection[str]) -> bool:
        """Check a word against the words that cache-dit knows."""
        if value in allowed:
            return True
        self.refuse(
            name, f"{shown(value)} is none of {', '.join(allowed)}{nearest(value, allowed)}"
        )
        return False
