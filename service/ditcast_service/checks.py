"""What is wrong with a server's settings, found before any process starts.

The ranks check once more what only a loaded pipeline can tell.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import (
    Acceleration,
    ParallelismSettings,
    Problem,
    SettingsError,
    check_attention_backend,
    check_cache,
    check_parallelism,
    check_quantize,
    load_acceleration,
    resolve_parallelism,
)
from ditcast_service.adapter_folders import check_folders, load_listed
from ditcast_service.callers import LIMITS, Callers
from ditcast_service.control import check_control
from ditcast_service.fields import flag_of
from ditcast_service.loading_checks import check_start
from ditcast_service.tls import Certificates, TlsFiles

if TYPE_CHECKING:
    from ditcast_service.config import ServerConfig

_WEEK = 7 * 86400.0
_INT32_MAX = 2**31 - 1

RANGES: Mapping[str, tuple[float, float]] = {
    "world_size": (1, 64),
    "groups": (1, 64),
    "queue_capacity": (1, 100_000),
    "max_overtakes": (0, 100_000),
    "max_batch_size": (1, 64),
    "max_batch_wait": (0, 60),
    "max_bytes_in_flight": (3, 2**50),
    **LIMITS,
    "max_num_inference_steps": (1, 100_000),
    "min_side": (1, 65_536),
    "max_side": (1, 65_536),
    "max_pixels": (1, 2**40),
    "max_images": (1, 1024),
    "max_frames": (1, 100_000),
    "max_input_images": (1, 1024),
    "max_input_pixels": (1, 2**30),
    "max_prompt_bytes": (1, 16 * 2**20),
    "max_request_bytes": (64 * 2**10, _INT32_MAX),
    "chunk_bytes": (2**10, 2**20),
    "load_timeout": (1, _WEEK),
    "warm_up_timeout": (1, _WEEK),
    "first_steps_timeout": (0.1, _WEEK),
    "step_timeout_floor": (0.1, _WEEK),
    "step_timeout_factor": (1, 1000),
    "decode_timeout": (0.1, _WEEK),
    "vote_timeout": (0.1, _WEEK),
    "alive_timeout": (2, _WEEK),
    "handshake_timeout": (0.1, 600),
    "attach_notice": (1, _WEEK),
    "shutdown_timeout": (0, 3600),
    "grace": (0, _WEEK),
    "max_attempts": (1, 10),
    "crash_loop_losses": (1, 1000),
    "crash_loop_window": (1, _WEEK),
    "heartbeat_interval": (0.05, 3600),
    "reader_timeout": (0.05, _WEEK),
    "retention": (0, _WEEK),
    "retention_count": (0, 100_000),
    "retention_bytes": (0, 2**40),
    "retention_memory_bytes": (0, 2**40),
    "max_reattach_window": (30, _WEEK),
    "prompt_cache_bytes": (0, 2**40),
    "encoder_threads": (1, 64),
}
"""Both ends inclusive. A test asserts that every number of the configuration stands here."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "log_format": ("auto", "json", "console"),
    "log_level": ("debug", "info", "warning", "error"),
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

Where = Callable[[str], str]
"""Gives the flag, key or variable that a field came from; the flag for a default."""


def check(config: ServerConfig, places: Mapping[str, str], problems: list[Problem]) -> ServerConfig:
    """Add what is wrong to `problems`, and give the config with its cache-dit file read."""

    def where(name: str) -> str:
        return places.get(name, flag_of(name))

    _check_values(config, where, problems)
    _check_addresses(config, where, problems)
    _check_security(config, where, problems)
    problems += check_control(config, where)
    _check_model(config, where, problems)
    config = _with_adapters(config, where, problems)
    config = _with_acceleration(config, where, problems)
    problems += check_start(config, where)
    return config


def _check_values(config: EngineConfig, where: Where, problems: list[Problem]) -> None:
    for name, (low, high) in RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high:
            reason = f"{value} is out of range: {low:.15g} to {high:.15g}"
            problems.append(Problem(where(name), reason))
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            problems.append(Problem(where(name), f"{value!r} is none of {', '.join(choices)}"))
    if config.min_side > config.max_side:
        reason = f"{config.min_side} is more than max_side, {config.max_side}"
        problems.append(Problem(where("min_side"), reason))
    least = config.min_side**2
    for name, pixels in (
        ("max_pixels", config.max_pixels),
        ("max_bytes_in_flight", config.max_bytes_in_flight // 3),
    ):
        if config.min_side <= config.max_side and pixels < least:
            reason = f"{getattr(config, name)} is less than min_side x min_side takes"
            problems.append(Problem(where(name), reason))


def _check_addresses(config: ServerConfig, where: Where, problems: list[Problem]) -> None:
    safe = config.insecure or config.tls_certificate is not None
    for name in ("listen", "control_listen"):
        for address in getattr(config, name):
            reason = _address_problem(address, safe=safe)
            if reason:
                problems.append(Problem(where(name), f"{address!r}: {reason}"))
    address = config.metrics_listen
    if address:
        sockets = address.startswith("unix:")
        reason = "it must be HOST:PORT" if sockets else _address_problem(address, safe=safe)
        if reason:
            problems.append(Problem(where("metrics_listen"), f"{address!r}: {reason}"))


def _address_problem(address: str, *, safe: bool) -> str:
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return "" if path and Path(path).parent.is_dir() else "there is no folder for this socket"
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 2**16):
        return "it must be HOST:PORT or unix:/path"
    if not safe and not _is_loopback(host.strip("[]")):
        return (
            "it can be reached from other machines without TLS: give --tls-certificate and "
            "--tls-key, listen on 127.0.0.1, or accept that with --insecure"
        )
    return ""


def _check_security(config: ServerConfig, where: Where, problems: list[Problem]) -> None:
    """Read what the ports will be opened with, so that a slip shows before anything starts."""
    certificate, key, client_ca = config.tls_certificate, config.tls_key, config.tls_client_ca
    files = tls_files(config)
    if files is None:
        if certificate or key or client_ca:
            name = "tls_key" if certificate else "tls_certificate"
            reason = "it is missing: TLS needs both --tls-certificate and --tls-key"
            problems.append(Problem(where(name), reason))
    else:
        _try(lambda: Certificates(files), where, problems)
    if config.callers is not None:
        path = config.callers
        _try(lambda: Callers(path), lambda field: f"{where('callers')} ({field})", problems)


def _try(read: Callable[[], object], where: Where, problems: list[Problem]) -> None:
    try:
        read()
    except ConfigError as error:
        problems += [Problem(where(each.field), each.reason) for each in error.problems]


def tls_files(config: ServerConfig) -> TlsFiles | None:
    """Give the files that TLS takes, if it is asked for in full."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return TlsFiles(
        certificate=config.tls_certificate, key=config.tls_key, client_ca=config.tls_client_ca
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_model(config: EngineConfig, where: Where, problems: list[Problem]) -> None:
    if not config.model:
        return
    folder = Path(config.model)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            reason = f"{folder} holds no model_index.json: it is no diffusers pipeline"
            problems.append(Problem(where("model"), reason))
    elif not _HUB_ID.fullmatch(config.model):
        reason = f"{config.model!r} is neither a folder nor the id of a model (owner/name)"
        problems.append(Problem(where("model"), reason))


def _with_adapters(config: ServerConfig, where: Where, problems: list[Problem]) -> ServerConfig:
    problems += check_folders(config.adapter_folder, where("adapter_folder"))
    found = load_listed(config.adapter_folder, config.adapter, where("adapter"), problems)
    return dataclasses.replace(config, adapters=found)


def _with_acceleration(config: ServerConfig, where: Where, problems: list[Problem]) -> ServerConfig:
    acceleration = config.acceleration
    if config.cache_dit_config is not None:
        try:
            acceleration = load_acceleration(config.cache_dit_config)
        except SettingsError as error:
            place = where("cache_dit_config")
            problems += [
                Problem(f"{place} ({error.source}: {each.field})", each.reason)
                for each in error.problems
            ]
            return config
    low, high = RANGES["world_size"]
    if not low <= config.world_size <= high:
        return config  # Said already; every degree would be wrong with it.
    asked = resolve_parallelism(acceleration.parallelism, config.world_size)
    findings = _check_acceleration(config, acceleration, asked)
    place = where("cache_dit_config" if config.cache_dit_config else "world_size")
    problems += [Problem(f"{place} ({each.field})", each.reason) for each in findings]
    return dataclasses.replace(
        config, acceleration=dataclasses.replace(acceleration, parallelism=asked)
    )


def _check_acceleration(
    config: EngineConfig, acceleration: Acceleration, asked: ParallelismSettings
) -> list[Problem]:
    """Judge what the file says, by what is known of the model without loading it."""
    numbers = _model_numbers(config)
    accelerator = config.device != "cpu"
    findings: list[Problem] = []
    findings += check_parallelism(
        acceleration.parallelism or asked,
        world_size=config.world_size,
        num_heads=numbers.get("num_attention_heads"),
        prefix="parallelism",
        accelerator=accelerator,
    )
    findings += check_cache(
        acceleration.cache,
        num_blocks=numbers.get("num_layers"),
        context_parallel=asked.context_parallel_degree > 1,
    )
    findings += check_attention_backend(
        acceleration.attention_backend,
        context_parallel=asked.context_parallel_degree > 1,
        accelerator=accelerator,
    )
    if acceleration.quantize is not None:
        findings += check_quantize(acceleration.quantize, accelerator=accelerator)
    return findings


def _model_numbers(config: EngineConfig) -> dict[str, dict[str, int]]:
    """Read heads and blocks of a local model's transformer, where its file names them so."""
    try:
        text = (Path(config.model_source) / "transformer" / "config.json").read_text("utf-8")
        content: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return {}
    return {
        name: {"transformer": content[name]}
        for name in ("num_attention_heads", "num_layers")
        if type(content.get(name)) is int
    }


def describe(problems: Sequence[Problem]) -> str:
    """Give one line for each problem, as the operator reads it."""
    return "\n".join(f"  {problem.field}: {problem.reason}" for problem in problems)
