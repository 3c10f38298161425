"""How the agent logs: readable on a terminal, JSON where a program reads. Always to stderr."""

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor


def configure(level: str, form: str) -> None:
    """Set the log level (`DEBUG` ... `ERROR`) and form: `console`, `json`, or `auto` (console on a terminal)."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    steps: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=not console),
    ]
    if console:
        steps.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        steps += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=steps,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
