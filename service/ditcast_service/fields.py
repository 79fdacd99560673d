"""The server's settings as flags, YAML keys and variables: all three follow from the dataclass.

What a field is for stands in the docstring under it and nowhere else; `--help` reads it there.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ditcast_runtime.settings import WarmUp

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One setting and how it is spelled."""

    name: str
    """The YAML key."""
    kind: object
    """bool, int, float, str, Path, an enum, or a tuple of texts, of pairs of them or of sizes."""
    default: object
    help: str

    @property
    def flag(self) -> str:
        """Its spelling on the command line."""
        return flag_of(self.name)

    @property
    def variable(self) -> str:
        """Its spelling in the environment."""
        return "DITCAST_" + self.name.upper()


def flag_of(name: str) -> str:
    """Spell a setting's name on the command line, where a mapping is given one pair at a time."""
    return "--" + name.replace("_", "-").replace("component-dtypes", "component-dtype")


def fields_of(config: type, *, without: frozenset[str]) -> tuple[Field, ...]:
    """List the settings of a dataclass in its order, leaving out what no text can carry."""
    hints = typing.get_type_hints(config)
    docs = _docs(config)
    return tuple(
        Field(
            name=field.name,
            kind=_without_none(hints[field.name]),
            default=field.default,
            help=docs[field.name],
        )
        for field in dataclasses.fields(config)
        if field.name not in without
    )


def parse(field: Field, value: object) -> object:  # noqa: PLR0911 (a table)
    """Make the field's type of a text, or of what YAML made of one.

    Raises:
        ValueError: with the reason as its text.
    """
    if field.kind is bool:
        return _boolean(value)
    if field.kind is int:
        return _integer(value)
    if field.kind is float:
        return _real(value)
    if field.kind in (str, Path):
        return Path(_text(value)) if field.kind is Path else _text(value)
    if isinstance(field.kind, type) and issubclass(field.kind, enum.Enum):
        return _word(field.kind, value)
    if field.kind == tuple[WarmUp, ...]:
        return tuple(WarmUp.parse(text) for text in _parts(value))
    return _pairs(value) if field.kind == tuple[tuple[str, str], ...] else _texts(value)


def _word(kind: type[enum.Enum], value: object) -> enum.Enum:
    try:
        return kind(value)
    except ValueError:
        words = ", ".join(str(each.value) for each in kind)
        raise ValueError(f"{value!r:.40} is none of {words}") from None


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    """Take a mapping, or texts like `vae=float32`; the last of one name counts."""
    if isinstance(value, Mapping):
        return tuple(sorted((_text(name), _text(each)) for name, each in value.items()))
    pairs = {}
    for text in _parts(value):
        name, equals, each = text.partition("=")
        if not (name and equals and each):
            raise ValueError(f"{text!r:.40} is not NAME=VALUE")
        pairs[name.strip()] = each.strip()
    return tuple(sorted(pairs.items()))


def _parts(value: object) -> tuple[str, ...]:
    """Take texts of which each may have commas."""
    return tuple(part for text in _texts(value) for part in _texts(text))


def _boolean(value: object) -> bool:
    word = str(value).lower()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise ValueError(f"{value!r} is neither true nor false")


def _integer(value: object) -> int:
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return int(value)
        except ValueError:
            pass
    raise ValueError(f"{value!r} is no whole number")


def _real(value: object) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError(f"{value!r} is no finite number")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is no text")


def _texts(value: object) -> tuple[str, ...]:
    """Take a list, or one text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ValueError(f"{value!r} is no list of texts")
    return tuple(_text(part).strip() for part in parts)


def _without_none(hint: object) -> object:
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _docs(config: type) -> Mapping[str, str]:
    """Read the text under each field, base classes first."""
    docs: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for field, text in pairwise(typing.cast("ast.ClassDef", tree).body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=str(doc))
                ):
                    docs[name] = " ".join(doc.split())
    return docs
