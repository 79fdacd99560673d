"""Merges what a ConfigureRequest brings into the configuration in force, path by path.

Works on messages alone: what is set, what is named, which method is chosen. What the result means,
and whether it can run, is for `change`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from ditcast.v1 import acceleration_pb2 as pb
from ditcast.v1.diffusion_service_pb2 import ConfigureRequest
from ditcast_runtime.settings import Problem
from ditcast_runtime.settings.problems import nearest

if TYPE_CHECKING:  # The same class at run time; the types know two.
    from google._upb._message import FieldDescriptor as UpbFieldDescriptor

MAX_PATHS = 1000
REPLACE_ALL = "*"

_Field: TypeAlias = "FieldDescriptor | UpbFieldDescriptor"

_MAX_PATH_CHARACTERS = 200
_VALUES = ("google.protobuf.Struct", "ditcast.v1.LayerNames")
"""Messages that are one value each: paths do not go into them, and they are never merged."""


def merge(
    current: pb.Configuration, initial: pb.Configuration, request: ConfigureRequest
) -> tuple[pb.Configuration, list[Problem]]:
    """Give the configuration that a request asks for, and what is wrong with how it asks.

    Args:
        current: What is in force, resolved.
        initial: What the server started with, resolved: where unset paths go back to.
        request: What is asked for.
    """
    problems: list[Problem] = []
    asked = pb.Configuration()
    asked.CopyFrom(request.configuration)
    asked.ClearField("revision")
    _clear_unknown_words(asked, "", problems)
    paths = _paths(request.update_mask.paths, problems)
    wanted = pb.Configuration()
    wanted.CopyFrom(current)
    wanted.ClearField("revision")
    named = request.update_mask.paths
    if not request.HasField("configuration") and (not named or REPLACE_ALL in named):
        problems.append(Problem("configuration", "it is required"))
    elif REPLACE_ALL in paths:
        return asked, problems
    elif named:
        _Naming(wanted, asked, current, initial, problems).apply(paths)
        _settle(wanted, current, paths)
    else:
        _add(wanted, asked)
        leaves = _set_leaves(asked)
        if "cache" in leaves:
            problems.append(Problem("cache", "it is set and empty: a method is required"))
        _settle(wanted, current, leaves)
    return wanted, problems


def changed_paths(before: Message, after: Message, prefix: str = "") -> Iterator[str]:
    """Name each leaf that differs; a method or message that only one side has, as a whole."""
    old = {each.name: value for each, value in before.ListFields()}
    new = {each.name: value for each, value in after.ListFields()}
    for each in before.DESCRIPTOR.fields:
        name, path = each.name, prefix + each.name
        choice = _choice(each)
        if _nested(each) and name in old and name in new:
            yield from changed_paths(old[name], new[name], f"{path}.")
        elif choice and (name in old) is not (name in new):
            # Where another one takes its place, that one is the entry.
            if name in new or after.WhichOneof(choice) is None:
                yield path
        elif old.get(name) != new.get(name):
            yield path


def within(path: str, outer: str) -> bool:
    """Tell whether a path is another one, or leads into it."""
    return path == outer or path.startswith(f"{outer}.")


@dataclass(slots=True)
class _Naming:
    """Applies named paths to `wanted`: takes over what is set, takes back what is not."""

    wanted: pb.Configuration
    asked: pb.Configuration
    current: pb.Configuration
    initial: pb.Configuration
    problems: list[Problem] = field(default_factory=list)

    def apply(self, paths: Collection[str]) -> None:
        """Apply all paths, in an order of their own: whoever chooses a method goes first."""
        for path in sorted(paths, key=lambda path: (path.count("."), self._is_set(path), path)):
            if self._is_set(path):
                self._take_over(path)
            else:
                self._take_back(path)

    def _is_set(self, path: str) -> bool:
        parent, name = _parent(self.asked, path)
        return parent is not None and _has(parent, name)

    def _take_over(self, path: str) -> None:
        source, name = _parent(self.asked, path)
        if source is None or self._strays(path):
            return
        target: Message = self.wanted
        for part in path.split(".")[:-1]:
            target = getattr(target, part)
            target.SetInParent()
        _copy(target, source, name)

    def _take_back(self, path: str) -> None:
        if self._strays(path):
            return
        target, name = _parent(self.wanted, path)
        if target is None:
            return  # There is no message that could hold it, and so nothing to take back.
        source, _ = _parent(self.initial, path)
        if choice := _choice(target.DESCRIPTOR.fields_by_name[name]):
            self._take_back_choice(path, target, choice)
        elif source is not None and _has(source, name):
            _copy(target, source, name)
        else:
            target.ClearField(name)

    def _take_back_choice(self, path: str, target: Message, choice: str) -> None:
        """Take the whole choice back: a method alone could not go without another coming."""
        first, name = _parent(self.initial, path)
        now, _ = _parent(self.current, path)
        if not any(each is not None and _has(each, name) for each in (first, now)):
            self._refuse(path, choice, now)
            return
        if member := target.WhichOneof(choice):
            target.ClearField(member)
        if first is not None and (member := first.WhichOneof(choice)):
            _copy(target, first, member)

    def _strays(self, path: str) -> bool:
        """Refuse a path into a method or calibrator that is not chosen."""
        at: Message = self.wanted
        for part in path.split(".")[:-1]:
            choice = _choice(at.DESCRIPTOR.fields_by_name[part])
            if choice and not _has(at, part):
                self._refuse(path, choice, at)
                return True
            at = getattr(at, part)
        return False

    def _refuse(self, path: str, choice: str, at: Message | None) -> None:
        chosen = at.WhichOneof(choice) if at is not None else None
        self.problems.append(Problem(path, f"the current {choice} is {chosen or 'none'}"))


def _paths(named: Collection[str], problems: list[Problem]) -> set[str]:
    """Give the known paths without those within others; `revision` is ignored, as everywhere."""
    if len(named) > MAX_PATHS:
        reason = f"it names {len(named)} paths; {MAX_PATHS} are allowed"
        problems.append(Problem("update_mask", reason))
        return set()
    known = _known_paths()
    unknown = sorted(set(named) - set(known) - {REPLACE_ALL})
    problems += [_unknown(path) for path in unknown]
    found = set(named) - set(unknown) - {"revision"}
    return {
        path for path in found if not any(path != each and within(path, each) for each in found)
    }


def _unknown(path: str) -> Problem:
    short = path[:_MAX_PATH_CHARACTERS]
    meant = short.removeprefix("configuration.")
    hint = f"; did you mean {meant}?" if meant in _known_paths() else nearest(meant, _known_paths())
    return Problem(short, f"there is no such path{hint}")


@functools.cache
def _known_paths() -> tuple[str, ...]:
    return tuple(_paths_of(pb.Configuration.DESCRIPTOR, ""))


def _paths_of(message: Descriptor, prefix: str) -> Iterator[str]:
    for each in message.fields:
        yield prefix + each.name
        if each.message_type is not None and _nested(each):
            yield from _paths_of(each.message_type, f"{prefix}{each.name}.")


def _add(target: Message, source: Message) -> None:
    """Take over all that is set; a method other than the chosen one starts from its defaults."""
    for each, _ in source.ListFields():
        if _nested(each) and (not _choice(each) or target.HasField(each.name)):
            part = getattr(target, each.name)
            part.SetInParent()
            _add(part, getattr(source, each.name))
        else:
            _copy(target, source, each.name)


def _set_leaves(message: Message, prefix: str = "") -> list[str]:
    """List the paths of what is set; of a message only where nothing in it is."""
    found: list[str] = []
    for each, value in message.ListFields():
        path = prefix + each.name
        inner = _set_leaves(value, f"{path}.") if _nested(each) else []
        found += inner or [path]
    return found


def _settle(wanted: pb.Configuration, current: pb.Configuration, asked: Collection[str]) -> None:
    """Let go of what only made sense beside the old values, unless it is asked for itself."""

    def asks(path: str) -> bool:
        return any(within(path, each) or within(each, path) for each in asked)

    method = str(wanted.cache.WhichOneof("method"))
    calibrator = wanted.cache.WhichOneof("calibrator")
    switched_off = method == "disabled" and not current.cache.HasField("disabled")
    if switched_off and calibrator and not asks(f"cache.{calibrator}"):
        wanted.cache.ClearField(calibrator)
    mask = f"cache.{method}.steps_computation_mask"
    if asks(f"{mask}_policy") and not asks(mask):
        # Of a list and a policy the list wins, and the policy would be asked for in vain.
        getattr(wanted.cache, method).ClearField("steps_computation_mask")
    degrees = [f"parallelism.{name}_degree" for name in ("ulysses", "ring", "tensor_parallel")]
    if any(map(asks, degrees)) and not asks("parallelism.ulysses_anything"):
        # It was resolved for the old degrees; left open, it fits the new ones.
        wanted.parallelism.ClearField("ulysses_anything")


def _clear_unknown_words(message: Message, prefix: str, problems: list[Problem]) -> None:
    """Make UNSPECIFIED unset, as the contract has it, and refuse numbers that stand for nothing."""
    for each, value in message.ListFields():
        path = prefix + each.name
        if each.enum_type is not None and not each.is_repeated:
            if value not in each.enum_type.values_by_number:
                problems.append(Problem(path, f"this version knows no value {value}"))
                message.ClearField(each.name)
            elif value == 0:
                message.ClearField(each.name)
        elif _nested(each):
            _clear_unknown_words(value, f"{path}.", problems)
        elif each.name == "components_to_quantize":
            for entry in value:
                inner = f"{path}.{entry.component}."
                _clear_unknown_words(entry.overrides, inner, problems)


def _nested(each: _Field) -> bool:
    """Tell whether paths lead into a field."""
    kind = each.message_type
    return kind is not None and not each.is_repeated and kind.full_name not in _VALUES


def _choice(each: _Field) -> str:
    """Name the choice that a field is one of; an `optional` field alone is none."""
    group = each.containing_oneof
    return group.name if group is not None and len(group.fields) > 1 else ""


def _parent(message: Message, path: str) -> tuple[Message | None, str]:
    """Give the message that holds the last field of a path, if it is there, and the field."""
    *parts, name = path.split(".")
    for part in parts:
        if not message.HasField(part):
            return None, name
        message = getattr(message, part)
    return message, name


def _has(message: Message, name: str) -> bool:
    if message.DESCRIPTOR.fields_by_name[name].is_repeated:
        return bool(getattr(message, name))
    return message.HasField(name)


def _copy(target: Message, source: Message, name: str) -> None:
    """Set a field to what it is elsewhere, whatever its kind."""
    each = target.DESCRIPTOR.fields_by_name[name]
    value: Any = getattr(source, name)
    target.ClearField(name)
    if each.is_repeated:
        getattr(target, name).MergeFrom(value)
    elif each.message_type is not None:
        getattr(target, name).SetInParent()
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)
