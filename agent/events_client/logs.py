"""Routes the log lines of the bus to the program's own logging."""

import structlog


def log_by_default() -> None:
    """Route log lines to `logging` unless the program has configured structlog, which by default prints to stdout."""
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
