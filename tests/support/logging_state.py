"""Restores logging, which is global to the process, after a test that configures it."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from agent.entrypoints.logs import pipeline

_EVENTS = "akosha-agent"
_NAMES = (_EVENTS, *pipeline.LIBRARIES, *pipeline.MUTE)


@contextmanager
def logging_restored(*names: str) -> Iterator[None]:
    """Restore hooks, handler and the levels of the agent's loggers, of its libraries' and of `names`."""
    levels = {name: logging.getLogger(name).level for name in (*_NAMES, *names)}
    hooks = sys.excepthook, threading.excepthook
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook = hooks
        structlog.reset_defaults()
        logging.getLogger(_EVENTS).propagate = True  # pytest captures propagated records only
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if pipeline._handler is not None:
            for name in ("", _EVENTS):
                logging.getLogger(name).removeHandler(pipeline._handler)
            pipeline._handler.close()
            pipeline._handler = None
