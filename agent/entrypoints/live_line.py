"""A line at the end of a terminal that is rewritten in place. Other lines to standard error are written above it."""

import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agent.domain.plain_text import printable
from agent.entrypoints.text_lines import cut_to_width, text_width

CLEAR = "\r\x1b[K"

_lock = threading.RLock()
"""Log lines come from several threads."""

_shown = ""
"""The live line on the terminal."""


def is_possible() -> bool:
    """Return whether standard error is a terminal that can rewrite a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def fitted(texts: Sequence[str], columns: int) -> str:
    """Return the first of these texts that a line of a terminal can show, else the last one, cut."""
    room = max(columns - 1, 1)  # the last column is left to the cursor
    return next((text for text in texts if text_width(text) <= room), cut_to_width(texts[-1], room))


def show(*texts: str) -> None:
    """Show the first of these texts that fits into the terminal's width, instead of the previous line; "" removes it.

    If none fits, the last one is cut. Raises OSError or ValueError if the terminal was closed.
    """
    global _shown  # noqa: PLW0603 - a process has one standard error
    text = fitted([printable(text) for text in texts], shutil.get_terminal_size().columns)
    with _lock:
        if text or _shown:
            _shown = text
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
