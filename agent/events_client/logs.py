"""Log lines of the bus go where the program's other log lines go."""

import structlog


def log_by_default() -> None:
    """Route log lines to `logging` in a program that has not configured structlog, which would print them to stdout."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
