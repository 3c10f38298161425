"""A command on a pseudo-terminal: the test waits for its questions and types the answers."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.support import zygote
from tests.support.machine import COMMAND, Machine

TIMEOUT = 60.0
"""Longest time without output."""


class Terminal:
    """A running command and the text on its terminal. `typed` is what the terminal echoed, too."""

    def __init__(self, process: "subprocess.Popen[str]", master: int) -> None:
        self.process, self.screen = process, ""
        self._master, self._seen = master, 0

    def answer(self, question: str, text: str) -> None:
        """Wait until the question is on the screen, after all that was waited for before, and type a line.

        A question without echo must be waited for with its last blank, which is printed once the echo is off.
        """
        self.expect(question)
        os.write(self._master, f"{text}\n".encode())

    def expect(self, text: str) -> str:
        """Wait until a text is on the screen, after all that was waited for before; return what is before it."""
        while (at := self.screen.find(text, self._seen)) < 0:
            if not self._read():
                raise AssertionError(f"it ended without {text!r}:\n{self.screen}")
        before, self._seen = self.screen[self._seen : at], at + len(text)
        return before

    def interrupt(self) -> int:
        """Press Ctrl-C and return the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        """Wait until the command has ended and return its exit status."""
        while self._read():
            pass
        return self.process.wait(TIMEOUT)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], TIMEOUT)
        assert ready, self.screen
        with suppress(OSError):  # EIO: the other side is closed
            if data := os.read(self._master, 4096):
                self.screen += data.decode(errors="replace").replace("\r\n", "\n")
                return True
        return False


@contextmanager
def on_terminal(machine: Machine, *words: str) -> Iterator[Terminal]:
    """Start a command of a machine on a terminal of 200 columns; kill it at the end of the block if it still runs."""
    master, slave = os.openpty()
    process = None
    try:
        process = zygote.popen(
            [COMMAND, *words],
            text=True, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=machine.environ | {"COLUMNS": "200", "TERM": "xterm"}, cwd=machine.home,
        )  # fmt: skip
        os.close(slave)
        yield Terminal(process, master)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(TIMEOUT)
        os.close(master)
