"""`akosha-agent sync` as a process, with `rclone serve s3` as its bucket: what it sends and how long it takes."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.counting_proxy import CountingProxy
from tests.bench.databases import Databases
from tests.bench.peers import Ran, run, stored_bytes
from tests.support.machine import Machine
from tests.support.servers.s3 import S3Server, aws_environment, running_rclone

AGENT = (sys.executable, "-m", "agent")

QUIET_SECONDS = 2.1
"""A little more than `akosha_agent_quiet_seconds`, after which `run` syncs a change."""


@dataclass(frozen=True)
class Sync:
    """One `sync`. `seconds` and `cpu`, in seconds, are of the command with its children; `sent` in bytes.

    `copying`: seconds in which the store made copies. `connections`: connections to the store.
    """

    seconds: float
    cpu: float
    sent: int
    copying: float
    connections: int
    outcome: str
    upload: str


@dataclass
class SyncingAgent:
    """An agent with one database in `file`. `server` stores its objects in the directory `served`."""

    machine: Machine
    file: Path
    server: S3Server
    served: Path
    proxy: CountingProxy
    bucket: str
    program: tuple[str, ...] = AGENT

    def sync(self) -> Sync:
        """Run `sync` once the files are quiet. Raises RuntimeError if it fails."""
        proxy = self.proxy
        self.wait_until_quiet()
        before = proxy.sent, proxy.copying_seconds, proxy.connections
        done = self.command("sync", "--json")
        result = json.loads(done.output)
        return Sync(
            done.seconds,
            done.cpu,
            proxy.sent - before[0],
            proxy.copying_seconds - before[1],
            proxy.connections - before[2],
            result["outcome"],
            result.get("upload_id") or "",
        )

    def wait_until_quiet(self) -> None:
        """Wait as `run` does: a main file that changed less than 2 s ago is compared again at the next sync."""
        time.sleep(max(0.0, self.file.stat().st_mtime + QUIET_SECONDS - time.time()))

    def session(self, number: int, *, checkpoint: bool) -> None:
        Databases.session(self.file, number, checkpoint=checkpoint)

    def command(self, *words: str) -> Ran:
        """Run a command of the agent to its end. Raises RuntimeError if it fails."""
        directories = ("--data-dir", str(self.machine.data), "--state-dir", str(self.machine.state))
        return run((*self.program, *words, *directories), environ=self.machine.environ, folder=self.machine.home)

    @property
    def stored(self) -> int:
        """The bytes of all objects in the bucket."""
        return stored_bytes(self.served / self.bucket)

    def files(self) -> list[Path]:
        """The database and its WAL."""
        return sorted(path for path in self.machine.data.iterdir() if path.is_file())


@contextmanager
def served(folder: Path) -> Iterator[tuple[S3Server, Path]]:
    """Run `rclone serve s3`; yield it and its directory."""
    os.environ |= aws_environment()
    root = folder / "served"
    root.mkdir(parents=True)
    with running_rclone(root) as server:
        yield server, root


@contextmanager
def syncing(
    folder: Path, databases: Databases, size: int, *, direct: bool = False, program: tuple[str, ...] = AGENT
) -> Iterator[SyncingAgent]:
    """Yield an agent with a database of `size` MiB that has not synced. `direct`: without the proxy, to measure times.

    `program`: the words that start the agent.
    """
    with served(folder) as (server, root), CountingProxy(server.endpoint) as proxy:
        bucket = server.new_bucket()
        endpoint = server.endpoint if direct else proxy.url
        machine = Machine(folder / "machine", cloud_endpoint=endpoint, cloud_bucket=bucket)
        machine.environ |= aws_environment()
        file = databases.copy_to(size, machine.data)
        yield SyncingAgent(machine, file, server, root, proxy, bucket, program)
