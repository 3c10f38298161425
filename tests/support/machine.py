"""A user's machine: a home, a data directory, a state directory, a bucket, and commands run on them as processes.

The commands do not see the real user's settings, credentials or proxies. Waits are for lines that a process prints,
limited by TIMEOUT.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from agent.adapters.machine_id import machine_id
from agent.domain.identity import Machine as HashedMachine, Owner
from agent.settings.sources import variable
from tests.support import constants, upload_contents, zygote
from tests.support.files import files_in
from tests.support.session_buddy import GRAPH, REFLECTION, create
from tests.support.zygote import COMMAND

TIMEOUT = 180.0
STOP_SECONDS = 60.0
NO_AKOSHA = "http://127.0.0.1:9/mcp"
"""An address where no Akosha server listens."""

_THIS_USERS = ("SESSION_BUDDY_", "AKOSHA_", "AWS_", "CLAUDE_", "XDG_")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """Standard output, which must be a single JSON document."""
        return json.loads(self.out)


@dataclass
class Lines:
    """The JSON lines that a process prints, in order; a line that is not JSON is `{"text": line}`."""

    pipe: IO[str] | None
    seen: list[dict] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed, self._ended = threading.Condition(), False
        self._reader = threading.Thread(target=self._read, name="lines", daemon=True)
        self._reader.start()

    def wait(self, wanted: Callable[[dict], object], count: int = 1) -> list[dict]:
        """Wait for `count` matching lines and return them."""

        def found() -> list[dict]:
            return [line for line in self.seen if wanted(line)]

        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(found()) >= count, TIMEOUT)
            assert len(found()) >= count, "".join(self.raw[-30:])
            return found()

    def join(self) -> None:
        self._reader.join(TIMEOUT)
        if self.pipe:
            self.pipe.close()

    def _read(self) -> None:
        for text in self.pipe or ():
            try:
                line = json.loads(text)
            except ValueError:
                line = {"text": text}
            with self._changed:
                self.raw.append(text)
                self.seen.append(line if isinstance(line, dict) else {"text": text})
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@dataclass
class Running:
    """A running command. `log` is its standard error, `printed` its standard output."""

    process: subprocess.Popen[str]
    log: Lines
    printed: Lines

    @property
    def pid(self) -> int:
        return self.process.pid

    def logged(self, event: str, count: int = 1, **fields: object) -> list[dict]:
        """Wait until the log has `count` lines with this event and these fields, and return them."""
        return self.log.wait(lambda line: line.get("event") == event and fields.items() <= line.items(), count)

    def reported(self, kind: str, count: int = 1, **fields: object) -> list[dict]:
        """For `events --follow --json`: wait for `count` events of a kind (`requested`, `succeeded`, ...)."""

        def wanted(line: dict) -> bool:
            return line.get("type") == f"akosha.sync.{kind}.v1" and fields.items() <= line["data"].items()

        return [line["data"] for line in self.printed.wait(wanted, count)]

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend the process for the duration of the block."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self, number: int = signal.SIGTERM, *, within: float = STOP_SECONDS) -> int:
        """Send a signal and return the exit status; fail if the process does not end in time."""
        self.process.send_signal(number)
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"it did not end within {within:g} s\n{''.join(self.log.raw[-30:])}") from error

    def end(self) -> Done:
        """Wait until the command ends by itself, and return its output."""
        code = self.process.wait(TIMEOUT)
        self.log.join()
        self.printed.join()
        return Done(code, "".join(self.printed.raw), "".join(self.log.raw))


class Machine:
    """`settings` are field names without `akosha_`. By default the bucket is a directory, and no Akosha server runs.

    No command may print one of `secrets`; `constants` are replaced in each command.
    """

    def __init__(self, tmp_path: Path, **settings: object) -> None:
        self.secrets: tuple[str, ...] = ()
        self.constants: dict[str, object] = {}
        self._written: set[tuple[str, int | None]] = set()
        self.home, self.data, self.state, self.bucket = (tmp_path / n for n in ("home", "data", "state", "bucket"))
        for folder in (self.home, self.data):
            folder.mkdir(parents=True)
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_THIS_USERS) and not name.lower().endswith("_proxy")
        }
        self.environ |= {"HOME": str(self.home), "AWS_CONFIG_FILE": os.devnull}
        self.environ |= {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
        self.set(cloud_endpoint=self.bucket.as_uri(), system_id="laptop", retry_backoff_seconds=0.05)
        self.set(agent_quiet_seconds=0.1, agent_min_interval_seconds=0.1)
        self.set(http_endpoint=NO_AKOSHA)
        self.set(**settings)

    def set(self, **settings: object) -> None:
        """Set settings, or unset them (None), for the commands started from now on."""
        for key, value in settings.items():
            self.environ.pop(variable(key), None)
            if value is not None:
                self.environ[variable(key)] = str(value)

    def write(self, *, commits: int | None = None, entities: int | None = None) -> None:
        """Replace the databases by ones with so many commits, each with one rename. None: keep that database."""
        scratch = self.home / "created"
        counts = {(REFLECTION, commits), (GRAPH, entities)}
        create(scratch, commits=commits, entities=entities, own=bool(counts & self._written))
        self._written |= {(name, count) for name, count in counts if count is not None}
        for name, count in ((REFLECTION, commits), (GRAPH, entities)):
            if count is not None:
                (scratch / name).replace(self.data / name)
        shutil.rmtree(scratch)

    def start(
        self, *words: str, prefix: Sequence[str] = (COMMAND,), directories: bool = True, **how: object
    ) -> Running:
        """Start a command, which the caller ends. `directories`: name them in options. `how` is for Popen."""
        directories = ["--data-dir", str(self.data), "--state-dir", str(self.state)] if directories else []
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment, program = {"env": self.environ, "cwd": self.home}, [*prefix]
        if self.constants:
            environment["env"] = self.environ | {constants.VARIABLE: json.dumps(self.constants)}
            if program[-1] == COMMAND:
                # -P: a module next to the program is called `agent`, too.
                program[-1:] = [sys.executable, "-P", constants.__file__]
        process = zygote.popen([*program, *words, *directories], text=True, **pipes | environment | how)
        return Running(process, Lines(process.stderr), Lines(process.stdout))

    @contextmanager
    def started(self, *words: str, **how: object) -> Iterator[Running]:
        """Start a command, and kill it at the end of the block if it is still running."""
        running = self.start(*words, **how)
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.process.kill()
            done = running.end()
        assert not [secret for secret in self.secrets if secret in done.out + done.err]

    @contextmanager
    def run(self, **how: object) -> Iterator[Running]:
        """Run the agent. At the end of the block it is stopped, and must exit with 0 in time."""
        with self.started("run", **how) as agent:
            agent.logged("agent_started")
            yield agent
            assert agent.stop() == 0, "".join(agent.log.raw[-30:])
            assert "".join(agent.printed.raw) == ""

    @contextmanager
    def follow(self) -> Iterator[Running]:
        """Run `events --follow --json`."""
        with self.started("events", "--follow", "--json") as following:
            yield following
            assert following.stop(signal.SIGINT) == 128 + signal.SIGINT, "".join(following.log.raw)

    def call(self, *words: str, **how: object) -> Done:
        """Run a command to its end."""
        with self.started(*words, **how) as running:
            return running.end()

    def shown(self, *commands: Sequence[str]) -> str:
        """Run commands, each to its end; return everything that they print."""
        return "".join(done.out + done.err for done in (self.call(*words) for words in commands))

    def sync(self, *words: str, code: int = 0, **how: object) -> dict:
        """Run `sync --json`, check the exit status and return the result."""
        done = self.call("sync", "--json", *words, **how)
        assert done.code == code, (done.code, done.out, done.err)
        return done.json

    def status(self, until: Callable[[dict], object] = lambda _: True) -> dict:
        """Run `status --json` until its output is as wanted, for at most TIMEOUT, and return the output."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            done = self.call("status", "--json")
            if (done.code, done.err) == (0, "") and until(done.json):
                return done.json
            # An agent that has just started has no control socket yet: status says so on stderr.
            assert done.code == 0, done.err
            assert time.monotonic() < deadline, done.out + done.err

    def events(self) -> list[dict]:
        done = self.call("events", "--json")
        assert (done.code, done.err) == (0, ""), done.err
        return [json.loads(line) for line in done.out.splitlines()]

    def owner(self, system_id: str = "laptop") -> Owner:
        """Return the owner.json of another agent with this machine and data directory."""
        machine = HashedMachine.of(machine_id(self.state), self.data.resolve(), "here")
        return Owner.new(system_id, machine, "1" * 32, datetime.now(UTC))

    @property
    def manifests(self) -> list[dict]:
        """The manifests in the bucket directory, oldest first."""
        found = sorted(self.bucket.glob("systems/*/uploads/*/manifest.json"))
        return [json.loads(path.read_bytes()) for path in found]

    @property
    def staged(self) -> list[Path]:
        return [*files_in(self.state / "staging")]

    def object(self, key: str) -> bytes:
        return (self.bucket / key).read_bytes()

    def memories(self, manifest: dict) -> list[dict]:
        """Return the entries of an upload's memories."""
        return upload_contents.memories_of(manifest, self.object)
