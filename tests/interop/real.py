"""The real Akosha for tests: a process of the interpreter that the environment variable AKOSHA_PYTHON names.

    with running_akosha(folder) as akosha:
        ...  # akosha.url is http://127.0.0.1:PORT/mcp
        akosha.rows()
        akosha.restart()

Its home is `folder`, and it makes no network requests.
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
_REMOVED_PREFIXES = ("AKOSHA_", "SESSION_BUDDY_", "OTEL_", "OTLP_", "FASTMCP_", "JWT_", "PYTHON")
_OFFLINE = {
    "AKOSHA_SKIP_DHARA_REGISTRATION": "1",
    "OTEL_SDK_DISABLED": "true",
    "FASTMCP_CHECK_FOR_UPDATES": "off",
    "FASTMCP_SHOW_SERVER_BANNER": "false",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
    "TZ": "UTC",
}


def interpreter() -> str:
    """Return the interpreter in which Akosha is installed, or an empty string if the variable is not set."""
    python = os.environ.get(VARIABLE, "")
    return str(Path(python).absolute()) if "/" in python else python


def environment(home: Path) -> dict[str, str]:
    """Return the environment for Akosha, without this machine's settings, credentials and proxies."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*_REMOVED_PREFIXES, "AWS_", "XDG_")) and not name.lower().endswith("_proxy")
    }
    return {**inherited, **_OFFLINE, "HOME": str(home)}


@dataclass(frozen=True)
class Row:
    """A memory that Akosha stores. `square`: the sum of its embedding's squares, 1 for a real one and 0 for zeros."""

    system_id: str
    memory_id: str
    text: str
    timestamp: str
    metadata: dict[str, object]
    square: float


class RealAkosha:
    """The server. If `persistent`, it stores memories in a file; else in memory, which is Akosha's default.

    If `plain`, it runs Akosha's unchanged command, and `rows` does not work. A restart keeps the port.
    """

    def __init__(self, folder: Path, *, persistent: bool = False, plain: bool = False) -> None:
        self._folder, self._plain = folder, plain
        self._store = str(folder / "hot.duckdb") if persistent else ":memory:hot"
        self._process: subprocess.Popen[bytes] | None = None
        self._reserved: socket.socket | None = None
        self._reserve_port(0)

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
        """The output of all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def rows(self, system_id: str = "") -> list[Row]:
        """Return the stored memories of one system or of all, sorted by ID."""
        rows = json.loads(self.get(f"/rows?system_id={quote(system_id)}"))
        return [Row(**{**row, "metadata": json.loads(row["metadata"])}) for row in rows]

    def types(self, system_id: str = "") -> dict[str, int]:
        """Return the number of stored memories by type."""
        return dict(Counter(str(row.metadata["type"]) for row in self.rows(system_id)))

    def get(self, path: str) -> bytes:
        """Return the body of a GET request."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.origin + path) as response:
            return response.read()

    @property
    def batches(self) -> int:
        """The number of batches that it received, over all its starts."""
        return len(_BATCH.findall(self.log))

    @property
    def repeated(self) -> int:
        """The number of received memories that it did not store, over all its starts."""
        return sum(int(count) for count in _BATCH.findall(self.log))

    def wait_for_log(self, pattern: str, count: int = 1) -> None:
        """Wait until the log has `count` matches of the pattern."""
        deadline = time.monotonic() + START_SECONDS
        while len(re.findall(pattern, self.log)) < count:
            assert self.running, f"Akosha ended\n{self.log}"
            assert time.monotonic() < deadline, f"the log has no {pattern!r}\n{self.log[-3000:]}"
            threading.Event().wait(0.01)

    def start(self) -> None:
        """Start the server and wait until it is healthy."""
        assert not self.running, "Akosha already runs"
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
        """Send SIGTERM and wait for the exit."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL and wait for the exit."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill the server and start it again."""
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
        except subprocess.TimeoutExpired:  # it waits for its clients to disconnect
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._process = None
        self._reserve_port(self.port)

    def _reserve_port(self, port: int) -> None:
        # While Akosha is down, the bound port refuses connections and is not assigned to another process.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", port))
        self.port: int = self._reserved.getsockname()[1]

    def _release_port(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None


@contextlib.contextmanager
def running_akosha(folder: Path, **options: bool) -> Iterator[RealAkosha]:
    """Run Akosha with its home, log and store in `folder`; `options` are those of RealAkosha."""
    server = RealAkosha(folder, **options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        server._release_port()
