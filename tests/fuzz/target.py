"""What a fuzz target is: input from outside, the code that reads it, and the promise that each example is checked for.

The code returns, or raises one error of `agent.domain.errors` that names what is wrong. It never raises another
exception, uses at most CPU_SECONDS and MEMORY_BYTES for an example, logs no error, and shows the canary nowhere: a
target puts it where credentials are.
"""

import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy
from structlog.testing import capture_logs

from agent.domain.errors import AkoshaError
from agent.domain.plain_text import printable

CANARY = "canary-0a1b2c3d4e5f"
CPU_SECONDS = 10.0
MEMORY_BYTES = 512 * 2**20
LONGEST_MESSAGE = 20_000

Read = Callable[[Any], object]


@dataclass(frozen=True)
class Target:
    """`examples` generates the input; `read` reads one example, and may assert more about what it returns.

    `errors` are those that `read` may raise; `names`: a regular expression that their text matches. `opened` replaces
    `read` if reading needs a server or a directory: it yields the function. `translated`: any exception of a library
    may be the cause of an error, because the library has no class for what it cannot read. `in_tests`: examples in
    `make test`.
    """

    name: str
    examples: SearchStrategy[Any]
    read: Read | None = None
    errors: tuple[type[AkoshaError], ...] = ()
    names: str = "."
    opened: Callable[[], AbstractContextManager[Read]] | None = None
    translated: bool = False
    in_tests: int = 100

    def reader(self) -> AbstractContextManager[Read]:
        """Return the function that reads an example, as a context manager."""
        if self.opened is not None:
            return self.opened()
        assert self.read is not None
        return nullcontext(self.read)

    def test(self, read: Read, with_settings: settings) -> Callable[[], None]:
        """Return the Hypothesis test that reads the examples. Its name is the key of its database."""

        def check(example: object) -> None:
            check_example(self, read, example)

        check.__name__ = check.__qualname__ = self.name.replace(" ", "_")
        return with_settings(given(self.examples)(check))


def check_example(target: Target, read: Read, example: object) -> None:
    """Read an example. Raises AssertionError, or the unexpected exception, if a promise is broken."""
    with capture_logs() as logs:
        try:
            with _limited():
                read(example)
        except target.errors as error:
            _check_error(target, error)
    for log in logs:
        assert log["log_level"] not in ("error", "critical"), f"an error was logged: {log}"
        assert CANARY not in repr(log), "a log event shows the canary"


def _check_error(target: Target, error: AkoshaError) -> None:
    text = str(error)
    assert re.search(target.names, text), f"the message does not name {target.names!r}: {text[:500]}"
    assert CANARY not in text, "the message shows the canary"
    assert printable(text, lines=True) == text, f"the message has control characters: {text[:500]!r}"
    assert len(text) <= LONGEST_MESSAGE, f"the message has {len(text)} characters: {text[:500]}"
    if not target.translated:
        assert not error.unexpected, f"an exception that the adapter does not know: {error.unexpected}"


@contextmanager
def never_refused() -> Iterator[None]:
    """Raise AssertionError for an error of the agent in the block: what was read must be usable."""
    try:
        yield
    except AkoshaError as error:
        raise AssertionError(f"refused only when it was used: {error}") from error


class LimitExceeded(Exception):  # noqa: N818 - it names the condition
    """An example took too much processor time."""


@contextmanager
def _limited() -> Iterator[None]:
    """Limit processor time and, on Linux, memory within the block. Raises LimitExceeded, MemoryError."""
    before = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        with _limited_memory():
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _stop(*_: object) -> None:
    raise LimitExceeded(f"it used {CPU_SECONDS:g} s of processor time")


@contextmanager
def _limited_memory() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
