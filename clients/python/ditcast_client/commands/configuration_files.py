"""Reads configurations out of files: the contract's own message, or cache-dit's format."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final, cast

from google.protobuf import json_format

from ditcast.v1.acceleration_pb2 import Configuration
from ditcast_client.commands.command import UsageError

GROUP: Final = "ditcast.configuration_files"
"""Entry points that read other formats: from a path to a configuration and the paths it changes."""

_CACHE_DIT_KEYS: Final = frozenset(
    {"cache_config", "parallelism_config", "quantize_config", "parallel_kwargs"}
)

Reader = Callable[[Path], tuple[Configuration, tuple[str, ...]]]


def read_configuration(path: Path) -> Configuration:
    """Read a Configuration of the contract: JSON where the name ends so, else YAML.

    Raises:
        UsageError: It cannot be read, or is no configuration.
    """
    try:
        text = path.read_text("utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else _parse_yaml(text)
        if not isinstance(content, dict):
            raise UsageError(f"{path} holds no keys at its top")
        if _CACHE_DIT_KEYS & content.keys():
            raise UsageError(f"{path} is in cache-dit's own format: use --cache-dit-file")
        return json_format.ParseDict(content, Configuration())
    except OSError as err:
        raise UsageError(f"cannot read {path}: {err.strerror}") from err
    except (ValueError, json_format.ParseError) as err:
        raise UsageError(f"{path} is no Configuration: {err}") from err


def read_cache_dit(path: Path) -> tuple[Configuration, tuple[str, ...]]:
    """Read a file in cache-dit's format, and give the parts of the configuration that it holds.

    Raises:
        UsageError: The server, which knows the format, is not installed; or it refused the file.
    """
    try:
        (entry, *_) = metadata.entry_points(group=GROUP, name="cache-dit")
        read = cast("Reader", entry.load())
    except (ModuleNotFoundError, ValueError) as err:
        reason = "cache-dit's format is the server's to read: pip install 'ditcast[server]'"
        raise UsageError(f"{reason}, or use --file") from err
    try:
        return read(path)
    except ValueError as err:
        raise UsageError(str(err)) from err


def _parse_yaml(text: str) -> object:
    try:
        # Only here: it is no dependency of the client, whose other parts do without.
        import yaml  # noqa: PLC0415
    except ModuleNotFoundError as err:
        raise UsageError("YAML needs pyyaml: pip install pyyaml, or use JSON") from err
    try:
        return cast("object", yaml.safe_load(text))
    except yaml.YAMLError as err:
        raise ValueError(" ".join(str(err).split())) from err
