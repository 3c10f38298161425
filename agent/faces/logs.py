"""How the agent logs: readable on a terminal, JSON where a program reads. Always to stderr."""

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor


LIBRARIES = ("watchfiles", "botocore", "aiobotocore", "asyncio")
"""They log through the standard library; from them, warnings are enough."""

MUTE = ("nats",)
"""What these have to say, their adapters say in our words."""


def _is_news(record: logging.LogRecord) -> bool:
    """Asyncio warns of each TLS connection that its other end has closed; that is no news."""
    return "eof_received" not in record.getMessage()


def configure(level: str, form: str) -> None:
    """Set the log level (`DEBUG` ... `ERROR`) and form: `console`, `json`, or `auto` (console on a terminal)."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    steps: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=not console),
    ]
    if console:
        # The default, rich tracebacks, prints local variables, and with them whatever secrets they hold.
        plain = structlog.dev.plain_traceback
        steps.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain))
    else:
        steps += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=steps,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in MUTE:
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    logging.getLogger("asyncio").addFilter(_is_news)
