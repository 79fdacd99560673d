"""What the server is told at the start: flags over a YAML file over `DITCAST_*` variables.

The dataclass is the one description of a setting: name, type, default and help come from it.
Everything that is wrong is said at once, before any process starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import LoadingSettings, Problem
from ditcast_runtime.settings.problems import nearest
from ditcast_service import checks
from ditcast_service.fields import Field, fields_of, parse


@dataclass(frozen=True, kw_only=True)
class ServerConfig(EngineConfig):
    """The engine's settings and those of the gRPC edge."""

    listen: tuple[str, ...] = ("127.0.0.1:50051",)
    """Where to listen, `HOST:PORT` or `unix:/path`, several with commas or by repeating the flag.
    Port 0: any free port."""
    insecure: bool = False
    """Allow listening beyond this machine without TLS, for instance behind a mesh's own."""
    tls_certificate: Path | None = None
    """The server's certificate chain, PEM, read again when it changes. Unset: no TLS. Sockets of
    this machine (unix:) never have any."""
    tls_key: Path | None = None
    """The key of that certificate, PEM, without a password."""
    tls_client_ca: Path | None = None
    """Certificates that sign clients', PEM: each client must then show one. Unset: none is asked
    for."""
    callers: Path | None = None
    """YAML file of who may call, what they may do and have at once, by tokens or certificates, read
    again when it changes. Unset: everybody may do everything."""
    control_listen: tuple[str, ...] = ()
    """Where ranks attach that others start, such as torchrun: `unix:/path` for those of this host,
    of which rank 0 is one, and `HOST:PORT` for other hosts, with commas or by repeating the flag.
    TCP has TLS if --tls-certificate is given. Unset: the service starts the ranks itself."""
    control_secret: Path | None = None
    """File with what those ranks have to know, at least 32 bytes. It is never sent."""
    cache_dit_config: Path | None = None
    """YAML or JSON file in cache-dit's own format. Unset: one rank, nothing cached."""
    adapter_folder: tuple[str, ...] = ()
    """Folders whose safetensors files may be loaded as LoRA adapters, with commas or by repeating
    the flag; no other file ever is. Callers see a folder's own name and the paths within it."""
    adapter: tuple[str, ...] = ()
    """Adapters to load at the start, as NAME=FILE, with commas or by repeating the flag; FILE
    as `ditcast adapters list` shows it."""
    metrics_listen: str = ""
    """Where Prometheus fetches /metrics, `HOST:PORT`; port 0: any free port. Empty: nowhere. Beyond
    this machine it takes TLS, which is then that of `--listen`, or `--insecure`. Nobody is asked
    for credentials: the figures name no callers, prompts or ids."""
    log_format: str = "auto"
    """json or console. auto: console on a terminal, else json."""
    log_level: str = "info"
    """debug, info, warning or error."""


LOADING_FIELDS = fields_of(LoadingSettings, without=frozenset())
FIELDS = (
    *fields_of(ServerConfig, without=frozenset({"acceleration", "adapters", "loading"})),
    *LOADING_FIELDS,
)
_BY_NAME = {field.name: field for field in FIELDS}

CLIENT_VARIABLES = frozenset({"DITCAST_ADDRESS", "DITCAST_TLS_CA", "DITCAST_TOKEN_FILE"})
"""Variables with the same prefix that are the client's and not ours to judge."""


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was given, and where, for messages that the operator can act on."""

    where: str
    value: object


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> ServerConfig:
    """Read the command line, the file that it names, and the environment.

    Raises:
        ConfigError: with every problem, each under the flag, key or variable that it came from.
        SystemExit: with 0, after `--help`.
    """
    problems: list[Problem] = []
    flags, file = _from_flags(arguments, problems)
    variables, variable_file = _from_environment(environment, problems)
    path = file or variable_file
    keys = _from_file(Path(path), problems) if path else {}
    given = {**variables, **keys, **flags}
    config = _build(given, problems)
    places = {name: value.where for name, value in given.items()}
    config = checks.check(config, places, problems)
    if problems:
        raise ConfigError(tuple(problems))
    return config


def parser() -> argparse.ArgumentParser:
    """Give the parser; every value stays a text here, so that all are judged in one place."""
    made = argparse.ArgumentParser(
        prog="ditcast serve",
        description="Serve a diffusers pipeline over gRPC. Each flag is also a key of the YAML "
        "file (--world-size: world_size) and a variable (DITCAST_WORLD_SIZE); flags win over the "
        "file, the file over variables.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    made.add_argument("--config", metavar="FILE", help="YAML file with any of these settings.")
    for field in FIELDS:
        _add(made, field)
    return made


def _add(made: argparse.ArgumentParser, field: Field) -> None:
    text = field.help.replace("%", "%%")
    if field.kind is bool:
        made.add_argument(
            field.flag, action=argparse.BooleanOptionalAction, default=None, help=text
        )
        return
    shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    default = "" if shown in ("", None) else f" (default: {shown})"
    repeated = isinstance(field.default, tuple)
    made.add_argument(
        field.flag,
        dest=field.name,
        action="append" if repeated else "store",
        metavar=field.name.rpartition("_")[2].upper(),
        help=text + default,
    )


def _from_flags(
    arguments: Sequence[str], problems: list[Problem]
) -> tuple[dict[str, _Given], str | None]:
    made = parser()
    try:
        parsed, unknown = made.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        problems.append(Problem(str(error.argument_name or "command line"), error.message))
        return {}, None
    known = [option for field in FIELDS for option in (field.flag, f"--no-{field.flag[2:]}")]
    for argument in unknown:
        # What follows an unknown flag is likely its value, and says nothing more.
        if not argument.startswith("-") and unknown[0] != argument:
            continue
        name = argument.partition("=")[0]
        problems.append(
            Problem(name, f"there is no such flag{nearest(name, [*known, '--config'])}")
        )
    values = {
        # A flag that is repeated is one text with commas, as which a variable has it in any case.
        field.name: _Given(field.flag, ",".join(value) if isinstance(value, list) else value)
        for field in FIELDS
        if (value := getattr(parsed, field.name)) is not None
    }
    return values, parsed.config


def _from_environment(
    environment: Mapping[str, str], problems: list[Problem]
) -> tuple[dict[str, _Given], str | None]:
    by_variable = {field.variable: field for field in FIELDS}
    values: dict[str, _Given] = {}
    for name, value in environment.items():
        if not name.startswith("DITCAST_") or name in CLIENT_VARIABLES | {"DITCAST_CONFIG"}:
            continue
        if name in by_variable:
            values[by_variable[name].name] = _Given(name, value)
        else:
            hint = nearest(name, by_variable)
            problems.append(Problem(name, f"there is no such variable{hint}"))
    return values, environment.get("DITCAST_CONFIG")


def _from_file(path: Path, problems: list[Problem]) -> dict[str, _Given]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(Problem("--config", f"cannot read {path}: {error}"))
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        problems.append(Problem("--config", f"{path} holds no keys at its top"))
        return {}
    values: dict[str, _Given] = {}
    for key, value in content.items():
        if key in _BY_NAME:
            values[key] = _Given(f"{path}: {key}", value)
        else:
            hint = nearest(str(key), _BY_NAME)
            problems.append(Problem(f"{path}: {key}", f"there is no such key{hint}"))
    return values


def _build(given: Mapping[str, _Given], problems: list[Problem]) -> ServerConfig:
    """Make the config of what can be read; a field that cannot keeps its default."""
    values: dict[str, Any] = {}
    for name, each in given.items():
        try:
            values[name] = parse(_BY_NAME[name], each.value)
        except ValueError as error:
            problems.append(Problem(each.where, str(error)))
    own = {field.name for field in LOADING_FIELDS} & values.keys()
    loading = LoadingSettings(**{name: values.pop(name) for name in own})
    return replace(ServerConfig(), loading=loading, **values)


def names() -> Iterable[str]:
    """List every setting's name."""
    return (field.name for field in fields(ServerConfig))
