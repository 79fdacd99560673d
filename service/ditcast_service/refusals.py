"""How the edge itself refuses, beyond what is wrong with values; `status` has their codes."""

from __future__ import annotations

from datetime import timedelta

from ditcast_runtime.errors import RuntimeFailure
from ditcast_runtime.settings import Problem


class RevisionMismatch(RuntimeFailure):
    """Somebody else changed the configuration since the caller saw it.

    Attributes:
        expected: the revision that the change was built on.
        current: the one in force.
    """

    def __init__(self, expected: int, current: int) -> None:
        self.expected = expected
        self.current = current
        super().__init__(f"The change builds on revision {expected}, but {current} is in force.")


class NeedsReload(RuntimeFailure):
    """The change is sound, but needs new ranks, which the caller did not allow.

    Attributes:
        problems: every field that needs it.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.field}: {problem.reason}" for problem in problems))


class UnknownAdapterFile(RuntimeFailure):
    """No folder that the operator listed has such a file.

    Attributes:
        file: what was asked for.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        super().__init__(f"There is no file {file!r:.200} to load an adapter from.")


class NotAppliedInTime(RuntimeFailure):
    """The caller's deadline passed before the change could be put into force."""

    def __init__(self) -> None:
        super().__init__("The time limit passed, and nothing was changed.")


class Unauthenticated(RuntimeFailure):
    """Nobody knows who calls: there are no credentials, or wrong ones."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Who calls is not known: {reason}.")


class MissingScope(RuntimeFailure):
    """The caller is known and may not do this.

    Attributes:
        scope: what it takes.
    """

    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__(f"The caller's credentials lack the scope {scope}.")


class TuneRunning(RuntimeFailure):
    """Another Tune runs, and each holds pictures to compare with.

    Attributes:
        retry_after: how long that one is likely to take.
    """

    def __init__(self, retry_after: timedelta) -> None:
        self.retry_after = retry_after
        super().__init__("Another Tune runs; there is one at a time.")


class ConfigurationChanged(RuntimeFailure):
    """Pictures that were to be compared are of different revisions of the configuration.

    Attributes:
        began: the revision of the first.
        current: that of the last.
    """

    def __init__(self, began: int, current: int) -> None:
        self.began = began
        self.current = current
        super().__init__(f"It began under revision {began}, and {current} came into force.")
