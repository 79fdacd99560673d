"""Writes the references in docs/ out of the code: of the settings, the figures and the contract.

`make docs` runs it. Nothing in those files is written by hand: nothing in them is wrong alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from ditcast_service.checks import CHOICES, RANGES
from ditcast_service.config import FIELDS
from ditcast_service.fields import Field
from ditcast_service.metric_families import Families, Family

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"

_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
"""Numbers of the lists in a FileDescriptorProto, of which paths to comments are made."""
_FIELD, _NESTED, _VALUE, _METHOD = 2, 3, 2, 2
"""Numbers of the lists within a message, an enum and a service."""

Path_ = tuple[int, ...]


def configuration() -> str:
    """Give the reference of every setting of `ditcast serve`."""
    head = """# Settings of `ditcast serve`

Each is a flag, a key of the YAML file that `--config` names, and a variable: `--world-size 2`,
`world_size: 2`, `DITCAST_WORLD_SIZE=2`. Flags win over the file, the file over variables. What is
wrong is said all at once, before any process starts (exit code 2). Times are in seconds, sizes in
bytes unless the name says more. Flags that switch have a twin, `--no-...`. Of several texts, a flag
and a variable are split at commas; a list in the file is taken as it stands, for names with commas.

| flag | type and range | default | what it is |
|---|---|---|---|
"""
    return head + "".join(map(_setting, FIELDS))


def _setting(field: Field) -> str:
    default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    shown = "" if default in (None, "") else f"`{default}`"
    return f"| `{field.flag}` | {_kind(field)} | {shown} | {_cell(field.help)} |\n"


def _kind(field: Field) -> str:
    if field.name in CHOICES:
        return " or ".join(f"`{word}`" for word in CHOICES[field.name])
    if isinstance(field.default, Enum):
        return " or ".join(f"`{word}`" for word in type(field.default))
    names: Mapping[object, str] = {
        bool: "switch",
        int: "whole number",
        float: "number",
        str: "text",
        Path: "path",
    }
    kind = names.get(field.kind, "text, repeated or with commas")
    if field.name not in RANGES:
        return kind
    low, high = RANGES[field.name]
    return f"{kind}, {low} to {high}"


def api() -> str:
    """Give the reference of the contract: every RPC, message, field and enum, with its comment."""
    parts = ["# The API\n\nMade of [`proto/ditcast/v1`](../proto/ditcast/v1), comments and all.\n"]
    described = _described()
    parts += [part for file in described for part in _services(file)]
    for file in described:
        parts += [f"\n## {Path(file.name).name}\n"]
        comments = _comments(file)
        for index, message in enumerate(file.message_type):
            parts += _message(message, (_MESSAGE, index), comments)
        for index, enum in enumerate(file.enum_type):
            parts += _enum(enum, (_ENUM, index), comments)
    return "".join(parts)


def _described() -> Sequence[FileDescriptorProto]:
    """Compile the contract with its comments, the service's file first."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "contract"
        names = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("ditcast/v1/*.proto"))
        compiler = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
        out = ["--include_source_info", f"--descriptor_set_out={target}"]
        subprocess.run([*compiler, *out, *names], check=True)
        made = FileDescriptorSet.FromString(target.read_bytes())
    return sorted(made.file, key=lambda file: (not file.service, file.name))


def _comments(file: FileDescriptorProto) -> dict[Path_, str]:
    return {
        tuple(location.path): location.leading_comments.strip()
        for location in file.source_code_info.location
        if location.leading_comments
    }


def _services(file: FileDescriptorProto) -> Iterator[str]:
    comments = _comments(file)
    for index, service in enumerate(file.service):
        place = (_SERVICE, index)
        yield f"\n## {service.name}\n\n{_text(comments[place])}\n"
        for number, method in enumerate(service.method):
            answer = _link(method.output_type)
            stream = f"a stream of {answer}" if method.server_streaming else answer
            yield f"\n### {method.name}\n\nTakes {_link(method.input_type)}, gives {stream}.\n\n"
            yield f"{_text(comments[(*place, _METHOD, number)])}\n"


def _message(
    message: DescriptorProto, place: Path_, comments: Mapping[Path_, str]
) -> Iterator[str]:
    if message.options.map_entry:
        return
    yield f"\n### {message.name}\n\n{_text(comments.get(place, ''))}\n"
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    if message.field:
        yield "\n| field | type | |\n|---|---|---|\n"
    for index, field in enumerate(message.field):
        comment = _cell(comments.get((*place, _FIELD, index), ""))
        oneof = ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            oneof = f"One of `{message.oneof_decl[field.oneof_index].name}`. "
        yield f"| `{field.name}` = {field.number} | {_type(field, entries)} | {oneof}{comment} |\n"


def _type(field: FieldDescriptorProto, entries: Mapping[str, DescriptorProto]) -> str:
    name = field.type_name.rpartition(".")[2]
    if name in entries:
        key, value = entries[name].field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    kinds = FieldDescriptorProto.Type
    plain = kinds.Name(field.type).removeprefix("TYPE_").lower()
    shown = _link(field.type_name) if field.type_name else plain
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {shown}"
    return f"optional {shown}" if field.proto3_optional else shown


def _enum(enum: EnumDescriptorProto, place: Path_, comments: Mapping[Path_, str]) -> Iterator[str]:
    yield f"\n### {enum.name}\n\n{_text(comments.get(place, ''))}\n\n| value | |\n|---|---|\n"
    for index, value in enumerate(enum.value):
        comment = _cell(comments.get((*place, _VALUE, index), ""))
        yield f"| `{value.name}` = {value.number} | {comment} |\n"


def _link(full_name: str) -> str:
    name = full_name.removeprefix(".")
    short = name.removeprefix("ditcast.v1.")
    return f"`{name}`" if short == name else f"[{short}](#{short.lower()})"


def _text(comment: str) -> str:
    """Unfold the lines of a comment, whose paragraphs stay apart."""
    paragraphs = comment.replace("\r", "").split("\n\n")
    return "\n\n".join(" ".join(line.strip() for line in each.split("\n")) for each in paragraphs)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def metrics() -> str:
    """Give the reference of every family of figures that Prometheus may fetch."""
    head = """# Metrics

`ditcast serve --metrics-listen 127.0.0.1:9464` has them at `/metrics`, as text for Prometheus or
OpenMetrics. The service process answers, so they outlive the ranks; counters begin at 0 with the
process. Labels take few values, known beforehand: never an id, a prompt or a caller. Beside these
there are the Prometheus client's own of the service process, `process_*`. What to watch, and what
to do about it: [OPERATIONS.md](OPERATIONS.md).

| name | kind | labels | what it is |
|---|---|---|---|
"""
    return head + "".join(map(_family, Families().described))


def _family(family: Family) -> str:
    labels = "<br>".join(f"`{name}`: {_cell(values)}" for name, values in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {_cell(family.help)} |\n"


REFERENCES = {"CONFIGURATION.md": configuration, "API.md": api, "METRICS.md": metrics}
"""What is written, by its name in docs/."""


def main() -> None:
    """Write them all."""
    for name, write in REFERENCES.items():
        (ROOT / "docs" / name).write_text(write(), "utf-8")


if __name__ == "__main__":
    main()
