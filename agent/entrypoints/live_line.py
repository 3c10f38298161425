"""A line at the end of a terminal that is rewritten in place. Other lines to standard error are written above it."""

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agent.domain.plain_text import printable

CLEAR = "\r\x1b[K"

_lock = threading.RLock()
"""Log lines come from several threads."""

_shown = ""
"""The live line on the terminal."""


def is_possible() -> bool:
    """Return whether standard error is a terminal that can rewrite a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def show(text: str) -> None:
    """Show this line instead of the previous one, cut to the terminal's width; "" removes it.

    Raises OSError or ValueError if the terminal was closed.
    """
    global _shown  # noqa: PLW0603 - a process has one standard error
    columns = shutil.get_terminal_size().columns
    with _lock:
        if text or _shown:
            _shown = printable(text)[: max(columns - 1, 1)]
            sys.stderr.write(CLEAR + _shown)
            sys.stderr.flush()


def write_above(text: str) -> None:
    """Write complete lines to standard error, above the live line. Raises OSError or ValueError if it was closed."""
    with _lock:
        sys.stderr.write(f"{CLEAR}{text}{_shown}" if _shown else text)
        sys.stderr.flush()


@contextmanager
def live_line() -> Iterator[None]:
    """Remove the live line when the block ends."""
    try:
        yield
    finally:
        show("")
