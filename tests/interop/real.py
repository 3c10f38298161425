"""The real Akosha for tests: a process of its own interpreter, which the environment variable AKOSHA_PYTHON names.

    with running_akosha(folder) as akosha:
        ...  # akosha.url is http://127.0.0.1:PORT/mcp
        akosha.rows()
        akosha.restart()

Its home is in `folder`, and it asks nobody for anything.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

VARIABLE = "AKOSHA_PYTHON"
START_SECONDS = 120
STOP_SECONDS = 30

_HERE = Path(__file__).parent
_BATCH = re.compile(r"Batch store completed: \d+/\d+ stored, (\d+) failed")
_OWN_LINES = ("AKOSHA_", "SESSION_BUDDY_", "OTEL_", "OTLP_", "FASTMCP_", "JWT_", "PYTHON")
_QUIET = {
    "AKOSHA_SKIP_DHARA_REGISTRATION": "1",
    "OTEL_SDK_DISABLED": "true",
    "FASTMCP_CHECK_FOR_UPDATES": "off",
    "FASTMCP_SHOW_SERVER_BANNER": "false",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
    "TZ": "UTC",
}


def interpreter() -> str:
    """Return the interpreter that has the real Akosha; empty where nobody named one."""
    named = os.environ.get(VARIABLE, "")
    return str(Path(named).absolute()) if "/" in named else named


def environment(home: Path) -> dict[str, str]:
    """Return what a process of that interpreter gets: none of this machine's settings, credentials and proxies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*_OWN_LINES, "AWS_", "XDG_")) and not name.lower().endswith("_proxy")
    }
    return {**kept, **_QUIET, "HOME": str(home)}


@dataclass(frozen=True)
class Row:
    """A memory that Akosha keeps. `square`: the sum of its embedding's squares, 1 for a real one and 0 for zeros."""

    system_id: str
    memory_id: str
    text: str
    timestamp: str
    metadata: dict[str, object]
    square: float


class RealAkosha:
    """The server. `kept`: what it stores is in a file and outlives it; else it is in memory, as in Akosha as it comes.

    `plain`: exactly the command that people run; then `rows` cannot be asked. The port stays the same over restarts.
    """

    def __init__(self, folder: Path, *, kept: bool = False, plain: bool = False) -> None:
        self._folder, self._plain = folder, plain
        self._store = str(folder / "hot.duckdb") if kept else ":memory:hot"
        self._process: subprocess.Popen[bytes] | None = None
        self._held: socket.socket | None = None
        self._hold_port(0)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/mcp"

    @property
    def pid(self) -> int:
        assert self._process, self.log
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it said, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def rows(self, system_id: str = "") -> list[Row]:
        """Return what is stored, of one system or of all, sorted by id."""
        found = json.loads(self.get(f"/rows?system_id={quote(system_id)}"))
        return [Row(**{**row, "metadata": json.loads(row["metadata"])}) for row in found]

    def types(self, system_id: str = "") -> dict[str, int]:
        """Return how many memories are stored, by type."""
        return dict(Counter(str(row.metadata["type"]) for row in self.rows(system_id)))

    def get(self, path: str) -> bytes:
        """Ask it by plain HTTP."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.origin + path) as answer:
            return answer.read()

    @property
    def batches(self) -> int:
        """How many batches it was sent, over all its starts."""
        return len(_BATCH.findall(self.log))

    @property
    def repeated(self) -> int:
        """How many memories it was sent that it did not store, over all its starts."""
        return sum(int(count) for count in _BATCH.findall(self.log))

    def said(self, pattern: str, count: int = 1) -> None:
        """Wait until it has said this so many times."""
        deadline = time.monotonic() + START_SECONDS
        while len(re.findall(pattern, self.log)) < count:
            assert self.running, f"Akosha ended\n{self.log}"
            assert time.monotonic() < deadline, f"it never said {pattern!r}\n{self.log[-3000:]}"
            threading.Event().wait(0.01)

    def start(self) -> None:
        """Start it and return when it is healthy."""
        assert not self.running, "it runs already"
        self._folder.mkdir(parents=True, exist_ok=True)
        command: Sequence[str] = ["-m", "akosha.cli"] if self._plain else [str(_HERE / "real_main.py"), self._store]
        options = ["start", "--host", "127.0.0.1", "--port", str(self.port), "--mode", "lite"]
        self._release_port()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [interpreter(), *command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=environment(self._folder),
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_healthy():
            assert self.running, f"Akosha ended with {self._process.returncode}\n{self.log}"
            assert time.monotonic() < deadline, f"Akosha is not healthy\n{self.log}"
            threading.Event().wait(0.05)

    def stop(self) -> None:
        """Ask it to end; return when it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it where it stands; return when it is dead."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    @property
    def _log(self) -> Path:
        return self._folder / "akosha.log"

    def _is_healthy(self) -> bool:
        try:
            return json.loads(self.get("/health"))["status"] == "ok"
        except OSError:
            return False

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # it waits for its clients
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._process = None
        self._hold_port(self.port)

    def _hold_port(self, port: int) -> None:
        # While it is down its port refuses connections, and nobody else is given it.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", port))
        self.port: int = self._held.getsockname()[1]

    def _release_port(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


@contextlib.contextmanager
def running_akosha(folder: Path, **how: bool) -> Iterator[RealAkosha]:
    """Run one with its home, log and store in `folder`. `how` is for RealAkosha."""
    server = RealAkosha(folder, **how)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        server._release_port()
