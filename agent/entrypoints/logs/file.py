"""The log file: rotated by size, with five old files kept, readable only by its user.

After the file was moved or deleted, for example by logrotate, it is reopened under its name. If it cannot be written,
lines go to standard error and nothing is raised: logging must not stop the agent.
"""

import os
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from stat import S_ISREG

from agent.entrypoints.logs.pipeline import LineHandler, write_stderr

KEPT = 5

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # do not block on a pipe without a reader
_PRIVATE = 0o600
_ROOT = 0


class LogFile(LineHandler, RotatingFileHandler):
    """Writes complete lines, from any thread. When `write` returns, the line is in the file (in the page cache)."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=KEPT, delay=True)
        self._path = path
        self._rotate_at = max_bytes
        self._failure = ""
        self._torn = False

    def write(self, text: str) -> None:
        """Append a line, including its end; write it to standard error if the file fails."""
        assert self.lock is not None
        with self.lock:
            try:
                self._append(text)
            except (OSError, ValueError) as error:
                self._close_stream()
                self._torn = True
                self._report(error, "cannot be written, so lines go to standard error")
                write_stderr(text)
            else:
                self._failure, self._torn = "", False

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        assert self.lock is not None
        with self.lock:
            self._close_stream()
        super().close()

    def _append(self, text: str) -> None:
        stream = self._opened()
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            self._rotate_at = self.maxBytes
        if size and size + len(text) > self._rotate_at:
            self._rotate(size)
            stream = self._opened()
        if self._torn and size and os.pread(stream.fileno(), 1, size - 1) != b"\n":
            text = f"\n{text}"  # the line before was truncated, for example by a full disk
        stream.write(text)
        stream.flush()

    def _rotate(self, size: int) -> None:
        try:
            self.doRollover()
        except OSError as error:
            self._rotate_at = size + self.maxBytes  # try again after max_bytes more, not at each line
            self._report(error, "cannot be rotated, so it keeps growing")
            self._failure = ""
        else:
            self._rotate_at = self.maxBytes

    def _report(self, error: OSError | ValueError, problem: str) -> None:
        """Report each reason once, on standard error."""
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if reason != self._failure:
            write_stderr(f"akosha-agent: the log file {self._path} {problem}: {reason}\n")
        self._failure = reason

    def _opened(self) -> TextIOWrapper:
        """Return a stream to the file that currently has the name. Raises OSError."""
        if self.stream is not None and not self._is_named(self.stream.fileno()):
            self._close_stream()
        if self.stream is None:
            self.stream = self._open()
        return self.stream

    def _close_stream(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError, ValueError):  # on a full disk, `write` has sent the buffered line to standard error
                stream.close()

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, _FLAGS, _PRIVATE)
        try:
            found = os.fstat(descriptor)
            if not S_ISREG(found.st_mode):
                raise OSError(0, "it is not a regular file")
            if found.st_uid not in (os.geteuid(), _ROOT):  # its owner could read the lines
                raise OSError(0, f"it belongs to user {found.st_uid}")
            if found.st_mode & 0o077 and found.st_uid == os.geteuid():
                os.fchmod(descriptor, _PRIVATE)
            return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
        except BaseException:
            os.close(descriptor)
            raise

    def _is_named(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(Path(self.baseFilename).stat(), os.fstat(descriptor))
        except OSError:
            return False
