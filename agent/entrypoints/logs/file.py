"""A log file: rotated at a size, five kept, for this user alone; where it cannot be written, stderr is.

It is followed by its name: one that was moved away or deleted (logrotate does) is made anew. Nothing that happens to it
is raised: a log that cannot be written must not stop the agent.
"""

import os
import sys
import threading
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from stat import S_ISREG

KEPT = 5

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # never wait: a pipe has no reader
_PRIVATE = 0o600


class LogFile:
    """Takes whole lines, from any thread. A line is in the file (the system's memory of it) when `write` returns."""

    def __init__(self, path: Path, bytes_each: int) -> None:
        self._path, self._bytes_each = path, bytes_each
        self._files = _Files(path)
        self._rotate_at = bytes_each
        self._lock = threading.Lock()
        self._failing = ""
        self._torn = False

    def write(self, text: str) -> None:
        """Append a line, with its end; to stderr where the file does not take it."""
        with self._lock:
            try:
                self._append(text)
            except (OSError, ValueError) as error:
                self._files.let_go()
                self._torn = True
                self._complain(error, "cannot be written, the log goes on here")
                _say(text)
            else:
                self._failing, self._torn = "", False

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Let go of the file; a line that still comes opens it again."""
        with self._lock:
            self._files.let_go()

    def _append(self, text: str) -> None:
        stream = self._files.current()
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            self._rotate_at = self._bytes_each
        if size and size + len(text) > self._rotate_at:
            self._rotate(size)
            stream = self._files.current()
        if self._torn and size and os.pread(stream.fileno(), 1, size - 1) != b"\n":
            text = f"\n{text}"  # what a full disk has cut off stays a line of its own
        stream.write(text)
        stream.flush()

    def _rotate(self, size: int) -> None:
        try:
            self._files.doRollover()
        except OSError as error:
            self._rotate_at = size + self._bytes_each  # not at each line
            self._complain(error, "cannot be set aside, it grows on")
            self._failing = ""
        else:
            self._rotate_at = self._bytes_each

    def _complain(self, error: OSError | ValueError, what: str) -> None:
        """Once for each reason: the log itself is what cannot be written."""
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if why != self._failing:
            _say(f"akosha-agent: the log file {self._path} {what}: {why}\n")
        self._failing = why


class _Files(RotatingFileHandler):
    """The file and those set aside. Used for these alone: nothing is emitted through it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, backupCount=KEPT, delay=True)

    def current(self) -> TextIOWrapper:
        """Return the stream to the file that has the name now. Raises OSError."""
        if self.stream is not None and not self._is_here(self.stream.fileno()):
            self.let_go()
        if self.stream is None:
            self.stream = self._open()
        return self.stream

    def let_go(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError, ValueError):  # a full disk: what it holds back it had been told
                stream.close()

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, _FLAGS, _PRIVATE)
        try:
            seen = os.fstat(descriptor)
            if not S_ISREG(seen.st_mode):
                raise OSError(0, "it is not a file")
            if seen.st_mode & 0o077 and seen.st_uid == os.geteuid():
                os.fchmod(descriptor, _PRIVATE)
            return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
        except BaseException:
            os.close(descriptor)
            raise

    def _is_here(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(Path(self.baseFilename).stat(), os.fstat(descriptor))
        except OSError:
            return False


def _say(text: str) -> None:
    """The last resort; where nobody reads stderr either, there is nobody to tell."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
