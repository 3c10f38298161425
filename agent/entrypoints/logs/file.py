"""The log file: rotated at a size, five old files kept, readable by its user only; standard error if it fails.

The file is reopened by its name when it was moved or deleted, as logrotate does. Errors are not raised: a log that
cannot be written must not stop the agent.
"""

import os
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from stat import S_ISREG

from agent.entrypoints.logs.pipeline import LineHandler, write_stderr

KEPT = 5

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # never wait for the reader of a pipe
_PRIVATE = 0o600


class LogFile(LineHandler, RotatingFileHandler):
    """Writes whole lines, from any thread. A line is in the file (in the page cache) when `write` returns."""

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
                self._report(error, "cannot be written, the log goes on here")
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
            text = f"\n{text}"  # the line that a full disk has cut off stays a line of its own
        stream.write(text)
        stream.flush()

    def _rotate(self, size: int) -> None:
        try:
            self.doRollover()
        except OSError as error:
            self._rotate_at = size + self.maxBytes  # not at each line
            self._report(error, "cannot be set aside, it grows on")
            self._failure = ""
        else:
            self._rotate_at = self.maxBytes

    def _report(self, error: OSError | ValueError, problem: str) -> None:
        """Report each reason once, on standard error: the log itself is what fails."""
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if reason != self._failure:
            write_stderr(f"akosha-agent: the log file {self._path} {problem}: {reason}\n")
        self._failure = reason

    def _opened(self) -> TextIOWrapper:
        """Return the stream to the file that has the name now. Raises OSError."""
        if self.stream is not None and not self._is_named(self.stream.fileno()):
            self._close_stream()
        if self.stream is None:
            self.stream = self._open()
        return self.stream

    def _close_stream(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError, ValueError):  # on a full disk: what it buffers was written to standard error
                stream.close()

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, _FLAGS, _PRIVATE)
        try:
            found = os.fstat(descriptor)
            if not S_ISREG(found.st_mode):
                raise OSError(0, "it is not a file")
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
