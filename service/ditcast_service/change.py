"""What a ConfigureRequest comes to: the wanted configuration, what is wrong with it, the outcomes.

Pure: it asks nobody and changes nothing. `mask` says which fields are meant, `change_checks` what
can run, `configure` puts it into force.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ditcast.v1 import acceleration_pb2 as pb
from ditcast.v1.diffusion_service_pb2 import ConfigureRequest
from ditcast_runtime.config import Configuration, EngineConfig, GenerationDefaults
from ditcast_runtime.errors import InvalidRequest, UnsupportedRequest
from ditcast_runtime.messages import Facts
from ditcast_runtime.settings import (
    CacheSettings,
    LoadingSettings,
    ParallelismSettings,
    Problem,
    QuantizeSettings,
    check_parallelism,
    resolve_parallelism,
)
from ditcast_runtime.settings.problems import one_per_field
from ditcast_service.change_checks import check_configuration
from ditcast_service.mask import changed_paths, merge, within
from ditcast_service.refusals import NeedsReload, RevisionMismatch
from ditcast_service.translate.acceleration import (
    cache_from_proto,
    configuration_to_proto,
    defaults_from_proto,
    loading_from_proto,
    parallelism_from_proto,
    quantize_from_proto,
)

LIVE = ("cache", "defaults")
"""Parts that change between two generations; all others are fixed when the ranks load."""

_RELOAD = "it is fixed when the ranks load: allow_reload lets them be loaded anew"

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a request comes to under the configuration in force."""

    current: Configuration
    wanted: Configuration
    """Of the parts that could be read; the others are the current ones."""
    changed: tuple[str, ...]
    """Paths of what differs, sorted."""
    problems: tuple[Problem, ...]
    allow_reload: bool

    def require(self) -> Configuration:
        """Give the wanted configuration, if it can be had.

        Raises:
            InvalidRequest: some values cannot be; has all problems.
            UnsupportedRequest: the values are sound, but this pipeline lacks the features.
            NeedsReload: only new ranks can hold it, and none may be loaded.
        """
        if any(problem.kind == "invalid" for problem in self.problems):
            raise InvalidRequest(self.problems)
        if self.problems:
            raise UnsupportedRequest(self.problems)
        if needing := self._needing_reload():
            raise NeedsReload(tuple(Problem(path, _RELOAD) for path in needing))
        return self.wanted

    def outcomes(self) -> list[pb.FieldOutcome]:
        """Say what becomes, or would become, of each changed field."""
        found = [
            pb.FieldOutcome(path=problem.field, outcome=pb.OUTCOME_REJECTED, reason=problem.reason)
            for problem in self.problems
        ]
        refused = [problem.field for problem in self.problems]
        for path in self.changed:
            if any(within(path, field) or within(field, path) for field in refused):
                continue  # The refusal is the entry, and it is at least as precise.
            found.append(self._outcome(path))
        return sorted(found, key=lambda outcome: outcome.path)

    def prediction(self) -> Configuration:
        """Give what would be in force after the request."""
        if self.problems or self._needing_reload() or not self.changed:
            return self.current
        return dataclasses.replace(self.wanted, revision=self.current.revision + 1)

    def _outcome(self, path: str) -> pb.FieldOutcome:
        if _is_live(path):
            return pb.FieldOutcome(path=path, outcome=pb.OUTCOME_APPLIED_LIVE)
        if self.allow_reload:
            return pb.FieldOutcome(path=path, outcome=pb.OUTCOME_APPLIED_BY_RELOAD)
        return pb.FieldOutcome(path=path, outcome=pb.OUTCOME_NEEDS_RELOAD, reason=_RELOAD)

    def _needing_reload(self) -> list[str]:
        return [path for path in self.changed if not _is_live(path) and not self.allow_reload]


def plan(
    current: Configuration,
    initial: Configuration,
    request: ConfigureRequest,
    facts: Facts,
    config: EngineConfig,
) -> Plan:
    """Work out what a request comes to.

    Args:
        current: What is in force.
        initial: What the server started with.
        request: What is asked for.
        facts: What is known of the loaded pipeline.
        config: The limits, and the world size.

    Raises:
        RevisionMismatch: the request builds on another revision.
    """
    if request.HasField("expected_revision") and request.expected_revision != current.revision:
        raise RevisionMismatch(request.expected_revision, current.revision)
    before = configuration_to_proto(current)
    merged, problems = merge(before, configuration_to_proto(initial), request)
    reading = _Reading(current, before, merged, problems)
    wanted = reading.wanted(config.world_size)
    problems += _new_paths(wanted.quantize, initial.quantize)
    if wanted != current:
        loaded = current.parallelism
        known = check_configuration(current, loaded, facts, config)
        found = check_configuration(wanted, loaded, facts, config)
        # What was so before is no fault of this change: the server runs with it.
        problems += [problem for problem in found if problem not in known]
    after = configuration_to_proto(wanted)
    after.revision = before.revision
    return Plan(
        current=current,
        wanted=wanted,
        changed=tuple(sorted(changed_paths(before, after))),
        problems=one_per_field(problems),
        allow_reload=request.allow_reload,
    )


@dataclass(slots=True)
class _Reading:
    """Makes a configuration of a message; a part that cannot be read stays the current one."""

    current: Configuration
    before: pb.Configuration
    message: pb.Configuration
    problems: list[Problem]

    def wanted(self, world_size: int) -> Configuration:
        """Read all parts. One that says what the current one says is that very object."""
        current, before, message = self.current, self.before, self.message
        has_backend = message.HasField("attention_backend")
        made = Configuration(
            revision=current.revision,
            cache=self._part("cache", current.cache, self._cache),
            parallelism=self._part(
                "parallelism", current.parallelism, lambda: self._parallelism(world_size)
            ),
            quantize=self._part("quantize", current.quantize, self._quantize),
            attention_backend=message.attention_backend if has_backend else None,
            defaults=self._part("defaults", current.defaults, self._defaults),
            loading=self._part("loading", current.loading, self._loading),
        )
        after = configuration_to_proto(made)
        # The words of a file may be spelled in another case than those of the contract.
        same = {
            name: getattr(current, name)
            for name in ("cache", "parallelism", "quantize", "defaults", "loading")
            if before.HasField(name) is after.HasField(name)
            and getattr(before, name) == getattr(after, name)
        }
        return dataclasses.replace(made, **same)

    def _part(self, name: str, current: _Value, read: Callable[[], _Value]) -> _Value:
        try:
            return read()
        except ValueError as error:
            self.problems.append(Problem(name, str(error)))
            return current

    def _cache(self) -> CacheSettings:
        message = self.message
        return cache_from_proto(message.cache) if message.HasField("cache") else CacheSettings()

    def _parallelism(self, world_size: int) -> ParallelismSettings:
        if not self.message.HasField("parallelism"):
            return resolve_parallelism(None, world_size)
        asked = parallelism_from_proto(self.message.parallelism)
        self.problems += _check_extra(asked)
        if asked != self.current.parallelism:
            # Before degrees are resolved: two that are open would look like one.
            self.problems += check_parallelism(asked, world_size=world_size)
        return resolve_parallelism(asked, world_size)

    def _quantize(self) -> QuantizeSettings | None:
        if not self.message.HasField("quantize"):
            return None
        settings = quantize_from_proto(self.message.quantize)
        names = [each.component for each in settings.components_to_quantize]
        if "" in names or len(set(names)) < len(names):
            reason = "each component must be named, and once"
            self.problems.append(Problem("quantize.components_to_quantize", reason))
        return settings

    def _loading(self) -> LoadingSettings:
        if not self.message.HasField("loading"):
            return self.current.loading
        return loading_from_proto(self.message.loading)

    def _defaults(self) -> GenerationDefaults:
        return defaults_from_proto(self.message.defaults)


def _check_extra(settings: ParallelismSettings) -> Iterator[Problem]:
    """Refuse options that could not be passed on, or would differ from themselves."""
    values: tuple[tuple[str, object], ...] = settings.extra_parallel_kwargs  # As it came.
    for name, value in values:
        if isinstance(value, list) or (isinstance(value, float) and not math.isfinite(value)):
            reason = f"{name} must be a scalar, and if a number a finite one"
            yield Problem("parallelism.extra_parallel_kwargs", reason)


def _new_paths(
    wanted: QuantizeSettings | None, initial: QuantizeSettings | None
) -> Iterator[Problem]:
    """Refuse folders that the server's own files do not name: callers choose none on its disk."""
    own = {folder for _, folder in _folders(initial)}
    for path, folder in _folders(wanted):
        if folder not in own:
            yield Problem(path, "only the server's own files can name a folder")


def _folders(settings: QuantizeSettings | None) -> Iterator[tuple[str, str]]:
    if settings is None:
        return
    if settings.serialize_to is not None:
        yield "quantize.serialize_to", settings.serialize_to
    for each in settings.components_to_quantize:
        if each.serialize_to is not None:
            path = f"quantize.components_to_quantize.{each.component}.serialize_to"
            yield path, each.serialize_to


def _is_live(path: str) -> bool:
    return path.partition(".")[0] in LIVE
