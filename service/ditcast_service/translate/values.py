"""The small things that every translation shares: enums by their words, durations, Structs."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

from google.protobuf import struct_pb2
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration

from ditcast_runtime.generation import KeywordValue

Number = TypeVar("Number", bound=int)

MICROSECONDS = 1_000_000


def to_number(enum: EnumDescriptor, word: str) -> int:
    """Give the number of the value that stands for one of our words.

    Raises:
        KeyError: the enum has no such value.
    """
    return enum.values_by_name[prefix(enum) + word.upper().replace("-", "_")].number


def to_word(enum: EnumDescriptor, number: int) -> str | None:
    """Give the word for a value; None for UNSPECIFIED.

    Raises:
        KeyError: a number that this version of the contract does not know.
    """
    if number == 0:
        return None
    return enum.values_by_number[number].name.removeprefix(prefix(enum)).lower()


def prefix(enum: EnumDescriptor) -> str:
    """Give what the names of an enum's values begin with, found on its first value."""
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def duration(seconds: float) -> Duration:
    """Give seconds as the contract carries them, to the microsecond."""
    made = Duration()
    made.FromTimedelta(timedelta(microseconds=round(seconds * MICROSECONDS)))
    return made


def seconds_of(value: Duration) -> float:
    """Give a duration in seconds; also for one that Duration's own helpers would refuse."""
    return value.seconds + value.nanos / 1e9


def struct(values: dict[str, KeywordValue]) -> struct_pb2.Struct:
    """Give arguments as a Struct; whole numbers become doubles, as it knows no others."""
    made = struct_pb2.Struct()
    for name, value in values.items():
        made.fields[name].CopyFrom(to_value(value))
    return made


def to_value(value: KeywordValue) -> struct_pb2.Value:
    """Give one argument as a Value."""
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if isinstance(value, list):
        entries = [to_value(entry) for entry in value]
        return struct_pb2.Value(list_value=struct_pb2.ListValue(values=entries))
    return struct_pb2.Value(number_value=value)


def from_value(value: struct_pb2.Value) -> KeywordValue:
    """Give a scalar, None, or a list of scalars.

    Raises:
        ValueError: it holds a mapping, a list in a list, or nothing.
    """
    match value.WhichOneof("kind"):
        case "null_value":
            return None
        case "list_value":
            return [_scalar(entry) for entry in value.list_value.values]
        case _:
            return _scalar(value)


def _scalar(value: struct_pb2.Value) -> bool | float | str:
    match value.WhichOneof("kind"):
        case "bool_value":
            return value.bool_value
        case "number_value":
            return value.number_value
        case "string_value":
            return value.string_value
        case _:
            raise ValueError("only scalars and lists of scalars can be passed to the pipeline")
