"""A server that runs as a process and that a test may kill: its port, and what it keeps in a file, survive."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Self
from urllib.parse import urlsplit

from tests.support import zygote
from tests.support.servers.ports import HeldPorts


class KeptProcess:
    """A program with the options `--port` and `--file`, which prints its address when it listens."""

    def __init__(self, program: ModuleType, file: Path, options: Sequence[str] = ()) -> None:
        self.url = ""
        self._file, self._command = file, (sys.executable, str(program.__file__), "--file", str(file), *options)
        self._port, self._held = 0, HeldPorts()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the server, on the previous port if there was one, and wait until it listens."""
        self._held.release()
        command = [*self._command, "--port", str(self._port)]
        self._process = zygote.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self._process.stdout.readline().strip()
        self._port = urlsplit(self.url).port

    def kill(self) -> None:
        """Kill the server; meanwhile its port refuses connections."""
        if self._process is not None:
            with self._process:
                self._process.kill()
            self._process = None
            self._held.hold([self._port])

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._held.release()
