"""The stand-in for Akosha as a process that a test may kill: its port and its memories survive.

with AkoshaProcess(folder) as akosha:
    akosha.kill()
    akosha.start()
"""

import subprocess
import sys
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.support import zygote
from tests.support.servers import akosha_main
from tests.support.servers.akosha import Row, stored_rows
from tests.support.servers.ports import HeldPorts


class AkoshaProcess:
    """A server that keeps its memories in a file of `folder`, and refuses requests without `token`."""

    def __init__(self, folder: Path, *, token: str = "") -> None:
        self.url = ""
        self._file, self._token = folder / "memories.jsonl", token
        self._port, self._held = 0, HeldPorts()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the server, on the previous port if there was one, and wait until it listens."""
        self._held.release()
        options = ["--port", str(self._port), "--file", str(self._file), "--token", self._token]
        command = [sys.executable, akosha_main.__file__, *options]
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

    def forget(self) -> None:
        """Delete the memories while the server is down."""
        self._file.unlink(missing_ok=True)

    def rows(self) -> list[Row]:
        """Return the stored memories in the order of arrival, without their embeddings."""
        return stored_rows(self._file)

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._held.release()
