"""The log pipeline: one formatter for the agent's events and the log records of libraries."""

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from agent.domain.plain_text import printable, redacted
from agent.entrypoints import live_line

LIBRARIES = ("watchfiles", "botocore", "aiobotocore", "aiohttp", "asyncio")
"""Libraries of which only warnings and errors are logged."""

MUTE = ("nats",)
"""Libraries whose records are dropped, because the adapters log their errors."""

MAX_DEPTH = 6
"""Levels of nested values that keep their structure in a log line."""

_PLAIN = (int, float, bool, type(None))
_MULTILINE = frozenset({"exception", "stack"})
"""Keys whose values have several lines."""

_EVENTS = logging.getLogger("akosha-agent")
"""The logger of the agent's own events."""


Renderer = Callable[[EventDict], str]
"""Returns the text of an entry, "" for one that is not shown."""


class LineHandler(logging.Handler):
    """A handler that writes complete lines and raises nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - the error may quote the line, which may contain a secret
            line = f"akosha-agent: a log line of {record.name} cannot be shown"
        if line:
            self.write(f"{line}\n")

    def write(self, text: str) -> None:
        """Write a line, including its end. Must not raise."""
        raise NotImplementedError


class StderrHandler(LineHandler):
    """Writes to the current `sys.stderr`."""

    def write(self, text: str) -> None:
        write_stderr(text)


def write_stderr(text: str) -> None:
    """Write to standard error; ignore a closed stream or a pipe without a reader."""
    with suppress(OSError, ValueError):
        live_line.write_above(text)


_handler: LineHandler | None = None
_renderer: Renderer | None = None


def log_to(handler: LineHandler, level: str, *, console: bool, colours: bool, render: Renderer | None = None) -> None:
    """Send all lines to this handler from now on, and close the previous one.

    They are rendered by `render`, if given; else as console lines or JSON.
    """
    global _handler, _renderer  # noqa: PLW0603 - logging is global
    _renderer = render
    level = level.upper()
    structlog.configure(
        processors=[ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=lambda *_: _EVENTS,
        cache_logger_on_first_use=False,
    )
    handler.setFormatter(_formatter(console=console, colours=colours, render=render))
    handler.setLevel(level)
    for logger in (_EVENTS, logging.getLogger()):
        logger.addHandler(handler)
        if _handler is not None:
            logger.removeHandler(_handler)
    if _handler is not None:
        _handler.close()
    _handler = handler
    _EVENTS.setLevel(level)
    _EVENTS.propagate = False  # another handler of the root logger would show events that are not redacted
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in MUTE:
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    logging.getLogger("asyncio").addFilter(_is_relevant)
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash


def goes_to_file() -> bool:
    """Return whether lines are written elsewhere than to standard error."""
    return _handler is not None and not isinstance(_handler, StderrHandler)


def is_rendered_by(render: Renderer) -> bool:
    """Return whether entries are rendered by this function."""
    return _renderer is render


def _formatter(*, console: bool, colours: bool, render: Renderer | None) -> ProcessorFormatter:
    final: Processor
    if render is not None:
        final = partial(_rendered, render)
    elif console:
        # The default, rich tracebacks, prints local variables, which may contain secrets.
        plain = structlog.dev.plain_traceback
        final = structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)
    else:
        final = structlog.processors.JSONRenderer()
    return ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name],
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not console),
            structlog.processors.format_exc_info,
            ProcessorFormatter.remove_processors_meta,
            redact,
            final,
        ],
    )


def _rendered(render: Renderer, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return render(event)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drop asyncio's warning about each TLS connection that the peer has closed."""
    return "eof_received" not in record.getMessage()


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log an uncaught exception like any other event, with secrets masked."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger().critical("crashed", exc_info=(kind, error, trace))


def _log_thread_crash(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None and not issubclass(crash.exc_type, SystemExit):
        name = crash.thread.name if crash.thread else ""
        trace = (crash.exc_type, crash.exc_value, crash.exc_traceback)
        structlog.get_logger().error("thread_failed", thread=name, exc_info=trace)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask secrets and escape control characters in all values. A structlog processor; exceptions are text by then."""
    return {key: _clean(value, MAX_DEPTH, lines=key in _MULTILINE) for key, value in event.items()}


def _clean(value: object, depth: int, *, lines: bool = False) -> object:
    if isinstance(value, str):
        return printable(redacted(value), lines=lines)
    if isinstance(value, _PLAIN):
        return value
    if depth and isinstance(value, Mapping):
        return {printable(redacted(_text(key, str))): _clean(one, depth - 1) for key, one in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(one, depth - 1) for one in value]
    return printable(redacted(_text(value, repr)))


def _text(value: object, convert: Callable[[object], str]) -> str:
    try:
        return convert(value)
    except Exception:  # noqa: BLE001 - any error of any type: the line must be written
        return f"<{type(value).__name__}>"
