"""The life of the service, from top to bottom: listen, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator

import structlog
from grpc import aio

from ditcast_runtime import logs
from ditcast_runtime.engine import Engine, Phase
from ditcast_runtime.errors import ConfigError, RuntimeFailure
from ditcast_runtime.hosts.attachments import Attachments
from ditcast_service import server as edge
from ditcast_service.checks import describe, tls_files
from ditcast_service.config import ServerConfig
from ditcast_service.control import listen_for_ranks
from ditcast_service.health import Health
from ditcast_service.loading_bar import LoadingBar
from ditcast_service.servicer import DiffusionServicer
from ditcast_service.telemetry import Telemetry

FAILED = 1
MISUSED = 2

_LAST_WORDS_SECONDS = 5.0
"""How long ended streams may take to reach their readers, once the engine has stopped."""

_COLLECT_SECONDS = 30.0
"""Between two full collections, of about a millisecond each."""

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""Options of glibc's `mallopt` (malloc.h)."""

_LARGE_BYTES = 64 * 2**10
"""From which on a buffer is mapped. Given, glibc does not raise it by itself to what was freed."""

_log = structlog.get_logger(__name__)

Signals = asyncio.Queue[signal.Signals]


async def live(config: ServerConfig) -> int:
    """Serve until a signal or the end of the engine; give the exit code."""
    _keep_the_heap_small()
    json_logs = _wants_json(config)
    logs.configure(json_logs=json_logs, level=config.log_level)
    try:
        telemetry = Telemetry(config, os.environ)
        server = edge.build(config, telemetry.watching)
        addresses = edge.listen(server, config.listen, tls_files(config))
        await telemetry.listen()
        attachments = listen_for_ranks(config, tls_files(config))
    except ConfigError as error:
        return _say(error)
    engine = Engine(
        config,
        telemetry.encode,
        telemetry.encode_preview,
        json_logs=json_logs,
        log_level=config.log_level,
        observer=telemetry.observer,
        attachments=attachments,
    )
    telemetry.look_at(engine)
    health = Health()
    engine.on_phase(health.follow)
    if not json_logs and sys.stderr.isatty():
        _show_loading(engine)
    edge.register(server, DiffusionServicer(engine, config), health)
    await server.start()
    _log.info("listening", addresses=addresses, model=config.model_id)
    with _signals() as signals, _open(attachments), _collected():
        code = await _run(engine, signals, f"{config.model_id} on {', '.join(addresses)}")
        forced = await _stop(engine, server, signals)
    if not forced:
        # Out here, where a second signal ends the process: a collector that is away takes seconds.
        telemetry.close()
    return forced or code


def _keep_the_heap_small() -> None:
    """Have all threads share one heap, and large buffers come from the kernel and go back to it.

    glibc's heaps, one for each thread that meets another, come to lie full of holes: with the same
    bytes in use, half a MiB more was resident after each thousand generations, which the campaign
    on steadiness now finds flat. Nothing is done where the C library is another.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)
        set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)


@contextlib.contextmanager
def _collected() -> Iterator[None]:
    """Collect garbage fully, now and then, while the context lasts.

    Left to itself CPython hardly ever does where little of what is made refers in circles, and only
    a full collection frees the spare tuples that it hoards: 2,000 of each length, which look like a
    leak for thousands of generations. What is here for good is frozen: each would walk all of it.
    """
    gc.collect()
    gc.freeze()

    async def collect() -> None:
        while True:
            await asyncio.sleep(_COLLECT_SECONDS)
            gc.collect()

    collecting = asyncio.create_task(collect())
    try:
        yield
    finally:
        collecting.cancel()
        gc.unfreeze()


async def _run(engine: Engine, signals: Signals, what: str) -> int:
    """Load and serve until a signal; give a code where the engine ends by itself."""
    signalled = asyncio.ensure_future(signals.get())
    starting = asyncio.ensure_future(engine.start())
    try:
        await asyncio.wait((starting, signalled), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            # Scripts wait for this line; the log goes to stderr.
            print(f"ditcast is serving {what}", flush=True)  # noqa: T201
            await asyncio.wait((engine.closed, signalled), return_when=asyncio.FIRST_COMPLETED)
        if engine.closed.done():
            engine.closed.result()
    except ConfigError as error:
        return _say(error)
    except RuntimeFailure as failure:
        _log.error("giving up", error=str(failure))
        return FAILED
    finally:
        starting.cancel()
        signalled.cancel()
    return 0


async def _stop(engine: Engine, server: aio.Server, signals: Signals) -> int:
    """Refuse new work and finish what was taken; a second signal cuts it short."""
    _log.info("stopping")
    stopping = asyncio.ensure_future(engine.stop())
    forced = asyncio.ensure_future(signals.get())
    await asyncio.wait({stopping, forced}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        _log.warning("stopping at once: a second signal")
        stopping.cancel()
        await server.stop(None)
        return FAILED
    forced.cancel()
    stopping.result()
    await server.stop(_LAST_WORDS_SECONDS)
    _log.info("stopped")
    return 0


@contextlib.contextmanager
def _open(attachments: Attachments | None) -> Iterator[None]:
    """Let ranks attach while the context lasts, where others start them."""
    if attachments is None:
        yield
        return
    _log.info("waiting for ranks to attach", ports=attachments.ports)
    with contextlib.closing(attachments):
        yield


@contextlib.contextmanager
def _signals() -> Iterator[Signals]:
    """Turn SIGTERM and SIGINT into entries of a queue while the context lasts."""
    loop = asyncio.get_running_loop()
    received: Signals = asyncio.Queue()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _show_loading(engine: Engine) -> None:
    """Draw on the terminal how far loading is, until the ranks serve."""
    bar = LoadingBar(sys.stderr)
    engine.on_loading(bar.show)
    engine.on_phase(lambda phase: bar.clear() if phase is Phase.SERVING else None)


def _wants_json(config: ServerConfig) -> bool:
    if config.log_format == "auto":
        return not sys.stderr.isatty()
    return config.log_format == "json"


def _say(error: ConfigError) -> int:
    message = f"ditcast serve cannot start:\n{describe(error.problems)}"
    print(message, file=sys.stderr)  # noqa: T201
    return MISUSED
