"""Logging: one event a line, as `key=value` text or JSON, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor

from agent.core.errors import cut

MAX_VALUE_CHARACTERS = 2000
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def setup_logging(*, level: str, form: str, stream: TextIO | None = None) -> None:
    """Configure structlog and the standard library's root logger; call once, before the first line.

    Args:
        level: the least severity written: `debug`, `info`, `warning` or `error`.
        form: `text` or `json`.
        stream: where lines go; stderr by default.
    """
    out = stream or sys.stderr
    render: Processor = (
        structlog.processors.JSONRenderer(default=str)
        if form == "json"
        else structlog.processors.LogfmtRenderer(key_order=["time", "level", "event"], bool_as_flag=False)
    )
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        one_line,
    ]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    _adopt_standard_logging(shared, render, out)


def one_line(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Keep every value on one line and within bounds: foreign text can forge no second event."""
    del logger, method
    return {_key(key): _value(value) for key, value in event.items()}


def _key(key: str) -> str:
    return "".join(c if c.isalnum() or c in "_.-" else "_" for c in key)  # logfmt takes no others


def _value(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict | list | tuple | set | frozenset):
        return value if len(str(value)) <= MAX_VALUE_CHARACTERS else cut(value, MAX_VALUE_CHARACTERS)
    if isinstance(value, str) and value.isprintable() and len(value) <= MAX_VALUE_CHARACTERS:
        return value  # the common case, untouched
    return cut(value, MAX_VALUE_CHARACTERS)


def _adopt_standard_logging(shared: list[Processor], render: Processor, out: TextIO) -> None:
    """Have libraries that use `logging` (asyncio, aiobotocore, grpc) write in the same form, warnings and worse only."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, one_line, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
