"""Lends the client the server's reader of cache-dit's format, through an entry point."""

from __future__ import annotations

from pathlib import Path

from ditcast.v1 import acceleration_pb2 as pb
from ditcast_runtime.settings import load_acceleration
from ditcast_service.translate.acceleration import (
    cache_to_proto,
    parallelism_to_proto,
    quantize_to_proto,
)


def read(path: Path) -> tuple[pb.Configuration, tuple[str, ...]]:
    """Give what a file holds as a configuration, and the paths of the parts that it sets.

    The cache is always among them: a file without `cache_config` is how cache-dit says that
    nothing is cached.

    Raises:
        SettingsError: with everything that is wrong with the file.
    """
    found = load_acceleration(path)
    configuration = pb.Configuration(cache=cache_to_proto(found.cache))
    paths = ["cache"]
    if found.parallelism is not None:
        configuration.parallelism.CopyFrom(parallelism_to_proto(found.parallelism))
        paths.append("parallelism")
    if found.quantize is not None:
        configuration.quantize.CopyFrom(quantize_to_proto(found.quantize))
        paths.append("quantize")
    if found.attention_backend is not None:
        configuration.attention_backend = found.attention_backend
        paths.append("attention_backend")
    return configuration, tuple(paths)
