"""A real nats-server for tests: a process on ephemeral loopback ports, with its store in a folder.

    with running_nats(folder) as server:
        server.kill()
        server.restart(wipe=True)

Its methods block; async and blocking tests use it alike. TLS, passwords and keys are text for its configuration file,
mostly from `tests.support.servers.nats_credentials`.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.servers.ports import HeldPorts

if TYPE_CHECKING:
    from nats import NATS

START_SECONDS = 60
STOP_SECONDS = 30

_COMMAND = str(Path(sys.executable).with_name("nats-server"))
_RELOADED = "Reloaded server configuration"
_LISTENERS = {
    "client": r"Listening for client connections on 127\.0\.0\.1:(\d+)",
    "websocket": r"Listening for websocket clients on wss?://127\.0\.0\.1:(\d+)",
    "monitor": r"Starting http monitor on 127\.0\.0\.1:(\d+)",
}


class NatsServer:
    """`config` is text for the configuration file, `limits` for its block `jetstream`, `websocket` for that block.

    A restart keeps the ports. Before a restart, `config` and `jetstream` may be changed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        jetstream: bool = True,
        limits: str = "",
        max_payload: int = 2**20,
        websocket: str | None = None,
        config: str = "",
    ) -> None:
        self.store = folder / "store"
        self.config, self.jetstream = config, jetstream
        self._folder, self._max_payload = folder, max_payload
        self._limits, self._websocket = limits, websocket
        self._ports = dict.fromkeys(_LISTENERS, -1)
        self._websocket_url = ""
        self._held = HeldPorts()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def port(self) -> int:
        return self._ports["client"]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str:
        """`ws://`, or `wss://` if `websocket` has a certificate."""
        return self._websocket_url

    @property
    def pid(self) -> int:
        assert self._process, self.log
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists; a paused one counts."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """The server's output over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start the server and wait until it is ready, including JetStream."""
        assert not self.running, "the server is running already"
        self._write_config()
        self._held.release()
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            command = [_COMMAND, "-c", str(self._folder / "nats.conf")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.logged("Server is ready")
        output = self.output
        self._ports = {name: int((re.search(line, output) or [0, -1])[1]) for name, line in _LISTENERS.items()}
        self._websocket_url = (re.search(r"websocket clients on (wss?:\S+)", output) or ["", ""])[1]
        socket.create_connection(("127.0.0.1", self.port), START_SECONDS).close()

    def stop(self) -> None:
        """Terminate the server like a service manager, and wait for its end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server and wait for its end."""
        self._end(signal.SIGKILL)

    def restart(self, *, wipe: bool = False) -> None:
        """Kill the server and start it again, with its store or with an empty one."""
        self.kill()
        if wipe:
            self.wipe()
        self.start()

    def reload(self) -> None:
        """Make the running server read `config` again. Its ports must be known to its file: restart it first."""
        count = self.output.count(_RELOADED)
        self._write_config()
        os.kill(self.pid, signal.SIGHUP)
        self.logged(_RELOADED, count + 1)

    def wipe(self) -> None:
        """Delete JetStream's store while the server is down."""
        assert not self.running, "the server is running"
        shutil.rmtree(self.store, ignore_errors=True)

    def pause(self) -> None:
        """Suspend the process (SIGSTOP); its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), self.log

    def resume(self) -> None:
        """Resume the process; does nothing if it is not paused."""
        os.kill(self.pid, signal.SIGCONT)

    def revive(self) -> None:
        """Resume or start the server, whatever a test has done to it."""
        if self.running:
            self.resume()
        else:
            self.start()

    def monitor(self, path: str) -> dict:
        """Return the answer of the server's monitor, for example to `/connz` or `/jsz?consumers=true`."""
        url = f"http://127.0.0.1:{self._ports['monitor']}{path}"
        # Without the proxies of this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=START_SECONDS) as answer:
            return json.load(answer)

    def logged(self, text: str, count: int = 1) -> None:
        """Wait until the output since the last start contains `text` `count` times."""
        deadline = time.monotonic() + START_SECONDS
        while self.output.count(text) < count:
            assert self.running, f"nats-server ended with {self._process and self._process.returncode}\n{self.output}"
            assert time.monotonic() < deadline, f"nats-server did not print {text!r}\n{self.output}"
            threading.Event().wait(0.002)

    @property
    def _log(self) -> Path:
        return self._folder / "nats.log"

    @property
    def output(self) -> str:
        """The server's output since its last start."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _write_config(self) -> None:
        lines = [
            f'listen: "127.0.0.1:{self._ports["client"]}"',
            f'http: "127.0.0.1:{self._ports["monitor"]}"',
            f"max_payload: {self._max_payload}",
        ]
        if self.jetstream:
            lines.append(f"jetstream {{\n  store_dir: {json.dumps(str(self.store))}\n  {self._limits}\n}}")
        if self._websocket is not None:
            address = f'listen: "127.0.0.1:{self._ports["websocket"]}"'
            lines.append(f"websocket {{\n  {address}\n  {self._websocket}\n}}")
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "nats.conf").write_text("\n".join([*lines, self.config, ""]))

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
        self._process.wait(STOP_SECONDS)
        self._process = None
        self._held.hold(port for port in self._ports.values() if port > 0)


@contextlib.contextmanager
def running_nats(folder: Path, **how: object) -> Iterator[NatsServer]:
    """Run a server with its configuration, log and store in `folder`. `how` is for NatsServer."""
    server = NatsServer(folder, **how)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        server._held.release()


@contextlib.asynccontextmanager
async def connected(url: str, **options: object) -> AsyncIterator["NATS"]:
    """Connect with plain nats-py, once and without reconnecting. `options` are for its `connect`.

    The client's `flush` returns when the server has received everything that was sent.
    """
    import nats

    class Client(nats.NATS):
        async def flush(self, timeout: int = 10) -> None:
            for _ in range(2):  # nats-py sends a ping before the contents of its buffer
                await super().flush(timeout)

    client = Client()
    try:
        await client.connect(url, **{"allow_reconnect": False, "max_reconnect_attempts": 1, **options})
    except Exception:
        # nats-py leaves its socket open, and after a TLS failure its `close` never returns.
        if client._transport:
            client._transport.close()
            await asyncio.sleep(0)
        raise
    try:
        yield client
    finally:
        await client.close()


async def delete_streams(server: NatsServer, **options: object) -> None:
    """Delete every stream, with all consumers."""
    async with connected(server.url, **options) as client:
        manager = client.jsm()
        for stream in await manager.streams_info():
            await manager.delete_stream(stream.config.name)
