"""Reads and writes settings in cache-dit's own format, YAML or JSON, without loss.

The format: the sections `cache_config`, `parallelism_config`, `quantize_config` and the text
`attention_backend`; or, the flat legacy form, the options of `cache_config` alone. Stricter than
cache-dit, which drops unknown keys in silence. Whether the values can run is for the checks.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ditcast_runtime.settings.document import Acceleration, parse_acceleration
from ditcast_runtime.settings.problems import Problem, SettingsError

MAX_FILE_BYTES = 256 * 1024
"""Largest file that is read: a real one has a few hundred bytes."""


def load_acceleration(path: Path) -> Acceleration:
    """Read a file in cache-dit's format: JSON where its name ends so, else YAML.

    Raises:
        SettingsError: With everything that is wrong with the file.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as err:
        raise _unreadable(source, err.strerror or "it cannot be read") from err
    if len(content) > MAX_FILE_BYTES:
        raise _unreadable(source, f"it is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
        data = _parse_json(text) if path.suffix.lower() == ".json" else _parse_yaml(text)
    except UnicodeDecodeError as err:
        raise _unreadable(source, "it is not UTF-8 text") from err
    except RecursionError as err:
        raise _unreadable(source, "it is nested too deeply") from err
    except (ValueError, yaml.YAMLError) as err:
        raise _unreadable(source, " ".join(str(err).split())) from err
    return parse_acceleration(data, source)


def _unreadable(source: str, reason: str) -> SettingsError:
    """Make the error of a file that does not even parse."""
    return SettingsError((Problem("(file)", reason),), source)


def _parse_json(text: str) -> object:
    """Parse JSON, refusing duplicate keys."""
    data: object = json.loads(text, object_pairs_hook=_unique_pairs)
    return data


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make the mapping of an object whose keys must differ: json keeps the last one in silence."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"duplicate key {twice!r}")
    return mapping


def _parse_yaml(text: str) -> object:
    """Parse YAML with the safe types only, refusing duplicate keys."""
    data: object = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a SafeLoader)
    return data


class _StrictLoader(yaml.SafeLoader):
    """yaml.safe_load, but for duplicate keys (the last one would win) and merge keys.

    Merged mappings that merge others grow without bound from a few lines.
    """

    def construct_mapping(  # PyYAML fixes the signature
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002
    ) -> dict[Hashable, Any]:
        """Make a mapping whose keys differ."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "merge keys (<<) are not read", key_node.start_mark
                )
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
