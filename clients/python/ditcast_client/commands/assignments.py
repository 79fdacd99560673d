"""Makes a configuration and a mask of `--set PATH=VALUE` and `--unset PATH`.

The contract's own descriptors say which paths there are, and of what type their values.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast_client.commands.command import UsageError

if TYPE_CHECKING:  # The same classes at run time; the types know two of each.
    from google._upb._message import EnumDescriptor as UpbEnum
    from google._upb._message import FieldDescriptor as UpbField
    from google.protobuf.descriptor import EnumDescriptor

Field: TypeAlias = "FieldDescriptor | UpbField"
Enum: TypeAlias = "EnumDescriptor | UpbEnum"

_REALS: Final = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)
_BOOLEANS: Final = {"true": True, "false": False}


def read_assignments(
    assigned: Sequence[str], unset: Sequence[str]
) -> tuple[Configuration, tuple[str, ...]]:
    """Give the configuration that holds the values, and the paths that change.

    Raises:
        UsageError: A path or a value cannot be, or a path is both set and unset.
    """
    configuration = Configuration()
    paths = []
    for text in assigned:
        path, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: it must be PATH=VALUE")
        if path in unset:
            raise UsageError(f"{path} is both set and unset")
        try:
            _assign(configuration, path, value)
        except (json_format.ParseError, OverflowError, TypeError, ValueError) as err:
            raise UsageError(f"--set {path}: {err}") from err
        paths.append(path)
    return configuration, (*paths, *unset)


def _assign(message: Message, path: str, text: str) -> None:
    *parts, name = path.split(".")
    for part in parts:
        field = _field(message, part)
        if field.message_type is None or field.is_repeated:
            raise ValueError(f"nothing is within {part}")
        message = getattr(message, part)
    field = _field(message, name)
    if field.message_type is not None:
        _assign_json(message, field, text)
    elif field.is_repeated:
        values = [_scalar(field, part) for part in _parts(text)]
        message.ClearField(name)
        getattr(message, name).extend(values)
    else:
        setattr(message, name, _scalar(field, text))


def _field(message: Message, name: str) -> Field:
    """Give the field, unless there is none or another one of the same choice is set already."""
    known = message.DESCRIPTOR.fields_by_name
    if name not in known:
        close = difflib.get_close_matches(name, list(known), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"there is no {name!r}{hint}")
    field = known[name]
    choice = field.containing_oneof
    other = message.WhichOneof(choice.name) if choice is not None else None
    if other not in (None, name):
        raise ValueError(f"{other} is set already, and only one of the two can be")
    return field


def _assign_json(message: Message, field: Field, text: str) -> None:
    """Take a message, a map or a list of messages as JSON, in protobuf's own form of it."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as err:
        raise ValueError(f"{text!r} is not JSON, which {field.name} needs: {err}") from err
    message.ClearField(field.name)
    if not field.is_repeated:
        getattr(message, field.name).SetInParent()  # An empty object is set, too.
    json_format.ParseDict({field.name: value}, message)


def _parts(text: str) -> Iterable[str]:
    """Take a list as JSON or with commas."""
    if text.startswith("["):
        return [part if isinstance(part, str) else json.dumps(part) for part in json.loads(text)]
    return text.split(",") if text else ()


def _scalar(field: Field, text: str) -> object:
    if field.enum_type is not None:
        return _number(field.enum_type, text)
    if field.type == FieldDescriptor.TYPE_STRING:
        return text
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text.lower() not in _BOOLEANS:
            raise ValueError(f"{text!r} is neither true nor false")
        return _BOOLEANS[text.lower()]
    try:
        return float(text) if field.type in _REALS else int(text)
    except ValueError:
        kind = "number" if field.type in _REALS else "whole number"
        raise ValueError(f"{text!r} is no {kind}") from None


def _number(enum: Enum, text: str) -> int:
    """Give the value that a word stands for, with or without the enum's name before it."""
    first = enum.values_by_number[0].name
    prefix = first.removesuffix("UNSPECIFIED")
    name = prefix + text.upper().replace("-", "_").removeprefix(prefix)
    if name not in enum.values_by_name or name == first:
        words = [each.removeprefix(prefix).lower() for each in enum.values_by_name if each != first]
        raise ValueError(f"{text!r} is none of {', '.join(words)}")
    return enum.values_by_name[name].number
