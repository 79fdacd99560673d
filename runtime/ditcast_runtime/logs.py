"""Structured logs of the service and of each rank: JSON in production, coloured on a terminal.

Every line goes to stderr; `rank` and `epoch` are bound once a process, `request_id` once a request.
"""

from __future__ import annotations

import logging
import sys

import structlog

_OWN_TEXTS = ("event", "exception")
"""Texts of lines that no caller writes."""


def configure(*, json_logs: bool, level: str, **bound: object) -> None:
    """Set up structlog and the standard library's logging; called once by each entry point."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info
        if json_logs
        else structlog.processors.UnicodeDecoder(),
    ]
    renderers: list[structlog.types.Processor] = (
        [structlog.processors.JSONRenderer()]
        if json_logs
        else [
            _printable,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # The pretty one prints local variables, and with them prompts.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)


def _printable(
    _logger: object, _method: str, entry: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Escape what a terminal would obey: ids and names come from callers."""
    for name, value in entry.items():
        if isinstance(value, str) and name not in _OWN_TEXTS and not value.isprintable():
            entry[name] = "".join(map(_escaped, value))
    return entry


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
