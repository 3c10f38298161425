r"""Standard output and standard error of a command: unencodable characters, and failed writes.

A character that the encoding lacks is written as a JSON escape (`\u00e9`): text stays readable, and JSON stays valid.
The first failed write raises `OutputError`; later output is discarded.
"""

import codecs
import errno
import io
import json
import sys
from typing import TYPE_CHECKING, TextIO

from agent.domain.errors import AkoshaError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT, STDERR = 1, 2
FAILED = 1
CLOSED = 128 + 13
"""Exit status of a program ended by SIGPIPE, like `cat` in `cat FILE | head -1`."""

ESCAPE = "akosha_agent_escape"


class OutputError(AkoshaError):
    """Standard output cannot be written. `closed`: its reader has exited, which is not an error."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {error.strerror or error}")
        self.closed = error.errno == errno.EPIPE

    @property
    def exit_code(self) -> int:
        """The status to exit with."""
        return CLOSED if self.closed else FAILED


class _Descriptor(io.FileIO):
    """A standard stream that raises at most once. Errors on standard error are ignored: they cannot be reported."""

    _failed = False

    def write(self, data: "ReadableBuffer", /) -> int | None:  # type: ignore[override] # as io.RawIOBase has it
        if not self._failed:
            try:
                return super().write(data)
            except OSError as error:
                self._failed = True
                if self.fileno() == STDOUT:
                    raise OutputError(error) from error
        return memoryview(data).nbytes


def guard() -> None:
    """Replace `sys.stdout` and `sys.stderr` if they write to descriptors 1 and 2."""
    codecs.register_error(ESCAPE, _escaped)
    sys.stdout = _guarded(sys.stdout, STDOUT)
    sys.stderr = _guarded(sys.stderr, STDERR)


def flush() -> None:
    """Flush standard output. Raises OutputError."""
    sys.stdout.flush()


def _guarded(stream: TextIO, descriptor: int) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != descriptor:
        return stream  # a test captures the output
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, "wb", closefd=False)),
        encoding=stream.encoding,
        errors=ESCAPE if stream.errors in {"strict", "surrogateescape"} else stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
