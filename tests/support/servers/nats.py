"""A real nats-server for tests: a process on ephemeral loopback ports, with its store in a folder, to be mistreated.

    with running_nats(folder) as server:
        server.kill()
        server.restart(wipe=True)

It blocks, so async tests and tests that drive processes use it alike. What guards it (TLS, passwords, keys) comes as
text for its configuration file, most of it out of `tests.support.servers.nats_credentials`.
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

if TYPE_CHECKING:
    from nats import NATS

START_SECONDS = 60
STOP_SECONDS = 30

_COMMAND = str(Path(sys.executable).with_name("nats-server"))
_LISTENERS = {
    "client": r"Listening for client connections on 127\.0\.0\.1:(\d+)",
    "websocket": r"Listening for websocket clients on wss?://127\.0\.0\.1:(\d+)",
    "monitor": r"Starting http monitor on 127\.0\.0\.1:(\d+)",
}


class NatsServer:
    """`config` is text for its configuration file, `limits` for the block `jetstream`, `websocket` for that one.

    Its ports are the same ones however often it is started. Before a restart, `config` and `jetstream` may be changed.
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
        self._held: list[socket.socket] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0

    @property
    def port(self) -> int:
        return self._ports["client"]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str:
        """`ws://`, or `wss://` where `websocket` has a certificate."""
        return self._websocket_url

    @property
    def pid(self) -> int:
        assert self._process, self.log
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a process; a paused one counts."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it said, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it and return when it serves, JetStream too."""
        assert not self.running, "it runs already"
        self._write_config()
        self._release_ports()
        self._began = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            command = [_COMMAND, "-c", str(self._folder / "nats.conf")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.logged("Server is ready")
        said = self._said()
        self._ports = {name: int((re.search(line, said) or [0, -1])[1]) for name, line in _LISTENERS.items()}
        self._websocket_url = (re.search(r"websocket clients on (wss?:\S+)", said) or ["", ""])[1]
        socket.create_connection(("127.0.0.1", self.port), START_SECONDS).close()

    def stop(self) -> None:
        """Ask it to end, as a service manager does; return when it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it where it stands; return when it is dead."""
        self._end(signal.SIGKILL)

    def restart(self, *, wipe: bool = False) -> None:
        """Kill it and start it again, with its store or with an empty one."""
        self.kill()
        if wipe:
            self.wipe()
        self.start()

    def wipe(self) -> None:
        """Delete all that JetStream kept, while the server is down."""
        assert not self.running, "it runs"
        shutil.rmtree(self.store, ignore_errors=True)

    def pause(self) -> None:
        """Stop it from doing anything; its connections stay. Return when it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), self.log

    def resume(self) -> None:
        """Let it go on; no harm if it was not paused."""
        os.kill(self.pid, signal.SIGCONT)

    def revive(self) -> None:
        """Undo whatever a test did to it: afterwards it runs."""
        if self.running:
            self.resume()
        else:
            self.start()

    def monitor(self, path: str) -> dict:
        """Return what its monitor answers, as to `/connz` or `/jsz?consumers=true`."""
        url = f"http://127.0.0.1:{self._ports['monitor']}{path}"
        # No proxy of this machine's stands between.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=START_SECONDS) as answer:
            return json.load(answer)

    def logged(self, text: str, count: int = 1) -> None:
        """Wait until it has said this `count` times since it was started."""
        deadline = time.monotonic() + START_SECONDS
        while self._said().count(text) < count:
            assert self.running, f"nats-server ended with {self._process and self._process.returncode}\n{self._said()}"
            assert time.monotonic() < deadline, f"it never said {text!r}\n{self._said()}"
            threading.Event().wait(0.002)

    @property
    def _log(self) -> Path:
        return self._folder / "nats.log"

    def _said(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._began)
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
            place = f'listen: "127.0.0.1:{self._ports["websocket"]}"'
            lines.append(f"websocket {{\n  {place}\n  {self._websocket}\n}}")
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
        self._hold_ports()

    def _hold_ports(self) -> None:
        # While the server is down its ports refuse connections, and nobody else is given them: not even a client that
        # tries to reach it, whose own end of the connection would be that port and be answered by itself.
        for port in self._ports.values():
            if port > 0:
                held = socket.socket()
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind(("127.0.0.1", port))
                self._held.append(held)

    def _release_ports(self) -> None:
        while self._held:
            self._held.pop().close()


@contextlib.contextmanager
def running_nats(folder: Path, **how: object) -> Iterator[NatsServer]:
    """Run one with its configuration, log and store in `folder`. `how` is for NatsServer."""
    server = NatsServer(folder, **how)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        server._release_ports()


@contextlib.asynccontextmanager
async def connected(url: str, **options: object) -> AsyncIterator["NATS"]:
    """Connect with plain nats-py, once and without reconnecting. `options` are for its `connect`."""
    import nats

    client = nats.NATS()
    try:
        await client.connect(url, **{"allow_reconnect": False, "max_reconnect_attempts": 1, **options})
    except Exception:
        # nats-py leaves its socket open then, and its `close` never returns when it was TLS that failed.
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
