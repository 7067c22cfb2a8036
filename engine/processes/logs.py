"""One log format for all processes: structlog events and standard-library records alike.

The server and each worker call `configure_logging` once, at the start. Everything goes to standard
error, one line per event, as JSON or for a console. Tracebacks show code but no local values, which
hold prompts and keys.
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

Fields = MutableMapping[str, Any]

_OUR_PACKAGES = ("server", "engine", "kernels")
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logging(
    log_format: str,
    log_level: str,
    *,
    stream: TextIO | None = None,
    fields: Mapping[str, str] | None = None,
    colors: bool | None = None,
) -> None:
    """Send all logs of this process to `stream`, by default standard error.

    Args:
        log_format: `json`, `console`, or `auto`: console on a terminal, JSON otherwise.
        log_level: `debug`, `info`, `warning` or `error`. Third-party packages always log from
            `warning` up.
        fields: added to every line, such as the name of the process.
        colors: whether console lines have colours; by default on a terminal.
    """
    stream = stream or sys.stderr
    level = _LEVELS[log_level]
    before = _shared_processors(dict(fields or {}))
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(
                    resolve_log_format(log_format, stream),
                    colors=stream.isatty() if colors is None else colors,
                ),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for package in _OUR_PACKAGES:
        logging.getLogger(package).setLevel(level)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        # A call below the wanted level costs only one empty function call.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def resolve_log_format(log_format: str, stream: TextIO) -> str:
    """`auto` is `console` on a terminal and `json` elsewhere."""
    if log_format == "auto":
        return "console" if stream.isatty() else "json"
    return log_format


def _shared_processors(fields: dict[str, str]) -> list[Any]:
    def add_fields(logger: object, method: str, event: Fields) -> Fields:
        return {**fields, **event}

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_fields,
    ]


def _renderers(log_format: str, *, colors: bool) -> list[Any]:
    if log_format == "console":
        return [
            structlog.dev.ConsoleRenderer(
                colors=colors,
                pad_event_to=0,
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    return [
        structlog.processors.format_exc_info,
        _put_first,
        structlog.processors.JSONRenderer(),
    ]


def _put_first(logger: object, method: str, event: Fields) -> Fields:
    """Put the most important fields at the beginning of a JSON line."""
    head = {name: event.pop(name) for name in ("timestamp", "level", "logger") if name in event}
    return {**head, "message": event.pop("event", None), **event}
