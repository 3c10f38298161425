"""The faults of a campaign. A fault is a class: `strike` happens while a change is synced, `heal` after it.

To add a fault: a subclass with `row`, `strike` and, if something must be put right again, `heal`.
"""

import random
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil

from tests.campaign.world import World
from tests.faults import killed_run
from tests.support.machine import COMMAND
from tests.support.servers.faulty_proxy import Action, ending, lose_the_answer, refuse, reset
from tests.support.waiting import happens

SYNC_SECONDS = 0.7
"""Approximate time of a sync of the campaign's databases: a fault strikes at a random moment of it."""


class Fault(ABC):
    """`row`: its row in the report. `store`: directory, or s3 behind a proxy."""

    row: ClassVar[str]
    store: ClassVar[str] = "directory"
    delayed: ClassVar[bool] = True
    """Strike at a random moment of the sync; otherwise before the change."""

    @abstractmethod
    def strike(self, world: World, rng: random.Random) -> None: ...

    def heal(self, world: World, rng: random.Random) -> None:  # noqa: B027 - most faults need none
        """Put right what does not mend itself."""


class AgentKilled(Fault):
    row = "SIGKILL of the agent at a random moment"

    def strike(self, world: World, rng: random.Random) -> None:
        world.kill_agent()

    def heal(self, world: World, rng: random.Random) -> None:
        world.start_agent()


class AgentKilledAtPoint(Fault):
    """The agent kills itself before or after a write."""

    row = "SIGKILL of the agent at a named point"
    delayed = False
    points: ClassVar = [
        f"{name}:{when}"
        for name in ("manifest", "deliver", "confirm", "publish", "ack")
        for when in ("before", "after")
    ]

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.stop_agent() == 0
        world.prefix = (sys.executable, killed_run.__file__, rng.choice(self.points))
        world.start_agent()

    def heal(self, world: World, rng: random.Random) -> None:
        assert world.agent is not None
        happens(lambda: world.agent.process.poll() is not None, 60)
        world.kill_agent()
        world.prefix = (COMMAND,)
        world.start_agent()


class ChildKilled(Fault):
    row = "SIGKILL of the DuckDB child"

    def strike(self, world: World, rng: random.Random) -> None:
        happens(lambda: world.children("duckdb.child"), 2)
        for child in world.children("duckdb.child"):
            with suppress(psutil.NoSuchProcess):
                child.kill()


class WriterKilled(Fault):
    """What was committed since the last checkpoint is in the WAL only."""

    row = "SIGKILL of the writer"
    delayed = False

    def strike(self, world: World, rng: random.Random) -> None:
        world.commit(rng.randint(1, 3))
        world.crash_writer()
        world.settle()
        world.start_writer()


class NatsKilled(Fault):
    row = "SIGKILL of nats-server"

    def strike(self, world: World, rng: random.Random) -> None:
        world.nats.kill()

    def heal(self, world: World, rng: random.Random) -> None:
        world.nats.start()


class StoreAnswers(Fault):
    """Some requests of the sync fail; later ones succeed."""

    row = "The S3 server resets, refuses, loses answers"
    store = "s3"
    delayed = False
    operations: ClassVar = ("put_object", "list_objects_v2", "head_object", "get_object", "copy_object")

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.proxy is not None
        for _ in range(rng.randint(1, 3)):
            world.proxy.on(rng.choice(self.operations), rng.choice([*_failures(rng)]), times=rng.randint(1, 4))


def _failures(rng: random.Random) -> Iterator[Action]:
    yield from (
        refuse(status, code) for status, code in ((500, "InternalError"), (503, "SlowDown"), (429, "Throttling"))
    )
    yield reset(after=0)
    yield lose_the_answer()
    yield ending("manifest.json", lose_the_answer())


class BucketChanged(Fault):
    """Somebody deletes, flips or swaps objects of the newest upload."""

    row = "Objects deleted, flipped or swapped behind the agent's back"
    delayed = False

    def strike(self, world: World, rng: random.Random) -> None:
        newest = world.manifests()[-1]
        paths = [world.machine.bucket / part["key"] for part in newest["parts"]]
        path = rng.choice(paths)
        how = rng.choice(("delete", "flip", "swap", "manifest"))
        if how == "delete":
            path.unlink()
        elif how == "flip":
            _flip(path, rng)
        elif how == "swap":
            shutil.copyfile(rng.choice([other for other in paths if other != path]), path)
        else:
            (path.parent / "manifest.json").unlink()

    def heal(self, world: World, rng: random.Random) -> None:
        """A person's sync examines the newest upload; damaged uploads that are older are deleted here."""
        world.machine.call("sync")
        world.machine.call("sync")
        for upload in sorted((world.machine.bucket / "systems").glob("*/uploads/*"))[:-1]:
            shutil.rmtree(upload)


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


class DataDirectory(Fault):
    """The data directory is deleted or swapped and comes back, or is full of other files."""

    row = "Data directory deleted, swapped, or full of other files"

    def strike(self, world: World, rng: random.Random) -> None:
        data = world.machine.data
        how = rng.choice(("away", "files", "renames"))
        if how == "away":
            aside = data.with_name("data-aside")
            data.rename(aside)
            if rng.random() < 0.5:
                data.mkdir()
                time.sleep(rng.uniform(0, 1))
                data.rmdir()
            aside.rename(data)
        else:
            count = 2_000 if how == "files" else 200
            for number in range(count):
                (data / f"other-{number}.txt").touch()
            for number in range(count):
                (data / f"other-{number}.txt").rename(data / f"renamed-{number}.duckdb.txt")
            for path in data.glob("renamed-*"):
                path.unlink()


class LedgerDamaged(Fault):
    """The ledger is corrupted, truncated or deleted while no agent runs."""

    row = "Ledger corrupted, truncated or deleted"
    delayed = False

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.stop_agent() == 0
        ledger = world.machine.state / "ledger.sqlite"
        how = rng.choice(("garbage", "truncate", "delete"))
        if how == "garbage":
            ledger.write_bytes(rng.randbytes(4096) + ledger.read_bytes()[4096:])
        elif how == "truncate":
            ledger.write_bytes(ledger.read_bytes()[: rng.randrange(100, 4096)])
        else:
            for path in world.machine.state.glob("ledger.sqlite*"):
                path.unlink()
        world.start_agent()


ALL: tuple[type[Fault], ...] = (
    AgentKilled,
    AgentKilledAtPoint,
    ChildKilled,
    WriterKilled,
    NatsKilled,
    StoreAnswers,
    BucketChanged,
    DataDirectory,
    LedgerDamaged,
)
