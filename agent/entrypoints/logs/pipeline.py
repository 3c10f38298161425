"""From an event to a line: the same steps for what the agent says and for what libraries say."""

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Protocol

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from agent.domain.plain_text import printable, redacted

LIBRARIES = ("watchfiles", "botocore", "aiobotocore", "aiohttp", "asyncio")
"""They log through the standard library; from them, warnings are enough."""

DEEPEST = 6
"""Levels of nested values that a log line keeps their shape of."""

_PLAIN = (int, float, bool, type(None))
_OF_LINES = frozenset({"exception", "stack"})
"""Keys whose values have several lines."""

MUTE = ("nats",)
"""What these have to say, their adapters say in our words."""


class Out(Protocol):
    """Takes lines. Never raises."""

    def write(self, text: str) -> None:
        """Write a whole line, its end included."""
        ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Stderr:
    """Standard error, whatever that is at the time."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more: there is nobody to tell
            sys.stderr.write(text)
            sys.stderr.flush()

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Libraries(logging.Handler):
    """What comes through the standard library, made into lines."""

    def __init__(self, out: Out, steps: list[Processor]) -> None:
        super().__init__()
        self.out = out
        self._steps = steps

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: EventDict = {"event": record.getMessage(), "logger": record.name, "exc_info": record.exc_info}
            made: object = event
            for step in self._steps:
                made = step(None, record.levelname.lower(), made)  # type: ignore[arg-type] # the last makes it a text
            self.out.write(f"{made}\n")
        except Exception:  # noqa: BLE001 - a library's line that cannot be shown; saying why might show what is in it
            self.out.write(f"akosha-agent: a log line of {record.name} cannot be shown\n")


_current: _Libraries | None = None


def lines_to(out: Out, level: str, *, console: bool, colours: bool) -> None:
    """Send all lines there from now on; what they went to before is closed."""
    global _current  # noqa: PLW0603 - logging is the process's
    steps = _steps(console=console, colours=colours)
    structlog.configure(
        processors=steps,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=out),  # type: ignore[arg-type] # it writes and flushes
        cache_logger_on_first_use=False,
    )
    root, before = logging.getLogger(), _current
    _current = _Libraries(out, steps)
    _current.setLevel(level.upper())
    root.addHandler(_current)
    if before is not None:
        root.removeHandler(before)
        before.out.close()
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in MUTE:
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    logging.getLogger("asyncio").addFilter(_is_news)
    sys.excepthook = _crashed
    threading.excepthook = _thread_crashed


def goes_to_file() -> bool:
    """Say whether lines go elsewhere than to stderr."""
    return _current is not None and not isinstance(_current.out, Stderr)


def _steps(*, console: bool, colours: bool) -> list[Processor]:
    render: Processor
    if console:
        # The default, rich tracebacks, prints local variables, and with them whatever secrets they hold.
        plain = structlog.dev.plain_traceback
        render = structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)
    else:
        render = structlog.processors.JSONRenderer()
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=not console),
        structlog.processors.format_exc_info,
        redact,
        render,
    ]


def _is_news(record: logging.LogRecord) -> bool:
    """Asyncio warns of each TLS connection that its other end has closed; that is no news."""
    return "eof_received" not in record.getMessage()


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nobody has caught is told like all else: where people look for it, and without secrets."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger().critical("crashed", exc_info=(kind, error, trace))


def _thread_crashed(told: threading.ExceptHookArgs) -> None:
    if told.exc_value is not None and not issubclass(told.exc_type, SystemExit):
        name = told.thread.name if told.thread else ""
        trace = (told.exc_type, told.exc_value, told.exc_traceback)
        structlog.get_logger().error("thread_failed", thread=name, exc_info=trace)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask secrets and escape control characters in all values: a structlog processor. Exceptions are text."""
    return {key: _clean(value, DEEPEST, lines=key in _OF_LINES) for key, value in event.items()}


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


def _text(value: object, how: Callable[[object], str]) -> str:
    try:
        return how(value)
    except Exception:  # noqa: BLE001 - whatever it is: a log line must come about
        return f"<{type(value).__name__}>"
