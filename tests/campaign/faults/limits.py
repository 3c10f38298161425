"""Limits of the operating system that the running agent reaches: descriptors, watches, threads, memory, permissions."""

import os
import random
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.campaign.faults.fault import Fault
from tests.campaign.world import Skipped, World
from tests.faults import restricted
from tests.support.machine import COMMAND

RESTRICTED = (sys.executable, restricted.__file__)


class NoDescriptors(Fault):
    """The agent can open no further file."""

    row = "No descriptors"
    rounds = 10
    bar = "stays up, says so, recovers by itself"

    def strike(self, world: World, rng: random.Random) -> None:
        process = psutil.Process(world.pid)
        before = resource.prlimit(world.pid, resource.RLIMIT_NOFILE)

        def limit() -> None:
            resource.prlimit(world.pid, resource.RLIMIT_NOFILE, (process.num_fds(), before[1]))

        limit()
        world.commit()
        world.said("Too many open files", meanwhile=limit)  # again, after a sync has closed its files
        resource.prlimit(world.pid, resource.RLIMIT_NOFILE, before)


class NoWatches(Fault):
    """inotify has no watches left when the data directory is replaced: the agent polls until there are some."""

    row = "No inotify watches"
    rounds = 10
    bar = "stays up, says so, recovers by itself"

    def prepare(self, world: World) -> None:
        world.prefix = ("unshare", "--user", "--map-root-user", COMMAND)
        if subprocess.run([*world.prefix[:-1], "true"], capture_output=True, check=False).returncode:
            raise Skipped("user namespaces are not permitted")

    def strike(self, world: World, rng: random.Random) -> None:
        self._allow(world, 0)
        aside = world.machine.data.with_name("data-aside")
        world.machine.data.rename(aside)
        world.said(f"waiting for {world.machine.data}")
        aside.rename(world.machine.data)
        world.commit()
        world.said("polling (")
        world.settle()
        world.begin_round()
        self._allow(world, 1000)
        world.said('"mode": "native"')

    def _allow(self, world: World, watches: int) -> None:
        """Set the number of watches in the agent's user namespace."""
        command = f"echo {watches} > /proc/sys/user/max_inotify_watches"
        subprocess.run(
            ["nsenter", "--user", "--preserve-credentials", "--target", str(world.pid), "sh", "-c", command], check=True
        )


class NoThreads(Fault):
    """The agent can start neither a thread nor a process."""

    row = "No threads and processes"
    rounds = 10
    bar = "stays up, says so, recovers by itself"

    def prepare(self, world: World) -> None:
        folders = [Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")]
        self.group = next((each for each in folders if (each / "cgroup.procs").exists()), folders[-1])
        self.group /= f"{world.folder.name}-{os.getpid()}"
        try:
            self.group.mkdir()
        except OSError as error:
            raise Skipped("a limit for threads needs root and a cgroup") from error
        world.at_end(self.group.rmdir)
        if not (self.group / "pids.max").exists():
            raise Skipped("a limit for threads needs the cgroup controller pids")
        world.prefix = ("env", COMMAND)  # the agent starts its children itself, without the zygote of the tests

    def strike(self, world: World, rng: random.Random) -> None:
        agent = psutil.Process(world.pid)
        for process in (agent, *agent.children(recursive=True)):
            with suppress(OSError):  # a child that has just ended
                (self.group / "cgroup.procs").write_text(str(process.pid))
        self._allow(str(agent.num_threads()))
        world.commit()
        world.said("can't start new thread", "Resource temporarily unavailable")
        self._allow("max")

    def _allow(self, tasks: str) -> None:
        (self.group / "pids.max").write_text(tasks)


class NoMemoryForTheChild(Fault):
    """The child that reads copies gets no memory: the copies are uploaded unverified, and the manifest says so."""

    row = "No memory for the DuckDB child"
    rounds = 10
    bar = "stays up, says so, recovers by itself"

    def prepare(self, world: World) -> None:
        self.flag = world.folder / "no-memory"
        world.prefix = (*RESTRICTED, f"child-memory:{self.flag}")

    def strike(self, world: World, rng: random.Random) -> None:
        world.settle()  # a sync that is running would end with the child that it has
        self.flag.touch()
        world.commit()
        world.said('"verified": false')
        self.flag.unlink()


class Unprivileged(Fault):
    """A fault of an agent whom permissions bind, although root has started it."""

    rounds = 10
    bar = "stays up, says so, recovers by itself"

    def prepare(self, world: World) -> None:
        world.prefix = (*RESTRICTED, "unprivileged")


class StateReadOnly(Unprivileged):
    """The agent can create no file in its state directory. The ledger is open and can be written."""

    row = "State directory read-only"

    def strike(self, world: World, rng: random.Random) -> None:
        state = world.machine.state
        with modes(0o500, state, state / "staging", state / "spool"):
            world.commit()
            world.said("Permission denied")


class PermissionTaken(Unprivileged):
    """The agent cannot read the databases or write to the bucket's directory, until it has the permission again."""

    row = "Permission taken away and given back"

    def strike(self, world: World, rng: random.Random) -> None:
        data, bucket = world.machine.data, world.machine.bucket
        mode, paths = rng.choice(
            ((0, [data]), (0, [*data.glob("*.duckdb*")]), (0, [bucket]), (0o500, [*bucket.glob("systems/*/uploads")]))
        )
        with modes(mode, *paths):
            world.commit()
            world.said("Permission denied", "no permission to read")


@contextmanager
def modes(mode: int, *paths: Path) -> Iterator[None]:
    """Give paths this mode for the duration of the block."""
    before = dict[Path, int]()
    for path in paths:
        with suppress(FileNotFoundError):  # the writer has removed its WAL
            before[path] = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode)
    try:
        yield
    finally:
        for path, each in before.items():
            with suppress(FileNotFoundError):
                path.chmod(each)
