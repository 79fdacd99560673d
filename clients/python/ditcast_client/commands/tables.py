"""The tables of `ditcast info`, `configure`, `list`, `adapters` and `tune`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ditcast.v1.acceleration_pb2 import Configuration, Outcome
from ditcast.v1.capabilities_pb2 import (
    Capabilities,
    IntegerRange,
    Limits,
    Parameter,
    ParameterType,
)
from ditcast.v1.diffusion_service_pb2 import ConfigureResponse, ListAdaptersResponse
from ditcast.v1.generation_pb2 import GenerationSummary, OutputFormat
from ditcast_client.report import Row, rows_of, state_word
from ditcast_client.units import duration_text, seconds_text

_PIPE_COLUMNS: Final = 120
"""Width of tables on a pipe, which has none of its own."""


def print_tables(capabilities: Capabilities, configuration: Configuration) -> None:
    """Print all that there is to know about a server."""
    accepted = ("name", "type", "default", "range", "given in")
    tables = (
        _table("Server", ("", ""), _server_rows(capabilities)),
        _table("Parameters", accepted, _parameters(capabilities)),
        _table("Limits", ("", ""), _limits(capabilities.limits)),
        _table("Acceleration", ("kind", "name", "possible"), _acceleration(capabilities)),
        _table(
            f"Configuration, revision {configuration.revision}", ("", ""), rows_of(configuration)
        ),
    )
    _print(*tables)


def print_outcomes(response: ConfigureResponse) -> None:
    """Print what became, or would become, of each field."""
    rows = [
        (each.path, Outcome.Name(each.outcome).removeprefix("OUTCOME_").lower(), each.reason)
        for each in response.outcomes
    ]
    _print(_table("", ("field", "outcome", "reason"), rows))


def print_adapters(found: ListAdaptersResponse) -> None:
    """Print what is loaded, and what could be."""
    loaded = [
        (each.name, each.file, ", ".join(each.components), _mebibytes(each.size_bytes))
        for each in found.loaded
    ]
    available = [(each.file, _mebibytes(each.size_bytes)) for each in found.available]
    _print(
        _table("Loaded", ("name", "file", "changes", "size"), loaded),
        _table("Can be loaded", ("file", "size"), available),
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def print_list(generations: Sequence[GenerationSummary]) -> None:
    """Print a line for each generation."""
    columns = ("id", "state", "steps", "created", "took", "readers", "revision")
    _print(_table("", columns, map(_generation, generations)))


def print_rows(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table that stands for itself."""
    _print(_table("", columns, rows))


def _print(*tables: Table) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    # Captured, because rich itself would end the process with 1 where the reader of a pipe left.
    with console.capture() as capture:
        console.print(*tables, sep="")
    print(capture.get(), end="")


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_header=any(columns),
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _generation(summary: GenerationSummary) -> tuple[str, ...]:
    state = state_word(summary.state)
    if summary.position:
        state += f", {summary.position} before it"
    created = summary.create_time.ToDatetime(UTC)
    took = ""
    if summary.HasField("end_time"):
        took = seconds_text((summary.end_time.ToDatetime(UTC) - created).total_seconds())
    return (
        summary.request_id,
        state,
        f"{summary.step}/{summary.total_steps}",
        created.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        took,
        str(summary.readers),
        str(summary.configuration_revision or ""),
    )


def _server_rows(capabilities: Capabilities) -> Iterator[Row]:
    model = capabilities.model
    yield "model", f"{model.id} {model.revision}".rstrip()
    classes = (model.pipeline_class, capabilities.scheduler_class, model.dtype)
    yield "pipeline", ", ".join(filter(None, classes))
    yield "weights", model.weights_digest
    yield "ranks", f"{capabilities.world_size} on {capabilities.device}"
    if capabilities.groups > 1:
        yield "groups of them", f"{capabilities.groups}, {capabilities.groups_serving} serving"
    if capabilities.max_batch_size > 1:
        yield "batches", f"of up to {capabilities.max_batch_size}"
    yield (
        "versions",
        f"server {capabilities.server_version}, contract {capabilities.contract_version}",
    )
    for name, version in sorted(capabilities.library_versions.items()):
        yield "library", f"{name} {version}"
    yield "outputs", ", ".join(map(_format_word, capabilities.output_formats))
    for facts in capabilities.transformers:
        shape = f"{facts.num_blocks} blocks, {facts.num_heads} heads"
        yield facts.name, f"{facts.class_name}, {shape}"
    yield "cancel", "at the next step" if capabilities.cancellable else "only at the end"
    for stage in capabilities.uninterruptible_stages:
        yield "", f"{stage.name}: {stage.description}"


def _parameters(capabilities: Capabilities) -> Iterator[tuple[str, ...]]:
    for parameter in capabilities.parameters:
        word = ParameterType.Name(parameter.type).removeprefix("PARAMETER_TYPE_").lower()
        place = "pipeline_kwargs" if parameter.in_pipeline_kwargs else "request"
        yield parameter.name, word, _default(parameter), _range(parameter), place


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    if not parameter.HasField("default"):
        return ""
    if parameter.default.WhichOneof("kind") == "number_value":
        return _number(parameter.default.number_value)
    return json.dumps(MessageToDict(parameter.default), ensure_ascii=False)


def _range(parameter: Parameter) -> str:
    least = _number(parameter.minimum) if parameter.HasField("minimum") else ""
    if not parameter.HasField("maximum"):
        return least and f"from {least}"
    return f"{least} to {_number(parameter.maximum)}".lstrip()


def _number(value: float) -> str:
    """Give a number, a whole one without a point: the contract has all of these as reals."""
    return str(int(value)) if value.is_integer() else str(value)


def _limits(limits: Limits) -> Iterator[Row]:
    for field, value in limits.ListFields():
        match value:
            case IntegerRange():
                yield field.name, f"{value.minimum} to {value.maximum}"
            case Duration():
                yield field.name, duration_text(value)
            case _:
                yield field.name, str(value)


def _acceleration(capabilities: Capabilities) -> Iterator[tuple[str, ...]]:
    for method in capabilities.cache_methods:
        yield "cache", method.name, "yes" if method.possible else f"no: {method.reason}"
    for mode in capabilities.parallel_modes:
        yield "parallel", mode.name, "yes" if mode.possible else f"no: {mode.reason}"


def _format_word(value: OutputFormat.ValueType) -> str:
    return OutputFormat.Name(value).removeprefix("OUTPUT_FORMAT_").lower().replace("_", "-")
