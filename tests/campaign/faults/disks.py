"""Disks without room: a small file system is mounted below what the agent writes, and filled."""

import random
import subprocess
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from tests.campaign.faults.fault import Fault
from tests.campaign.world import SAY_SECONDS, NotSettled, Skipped, World
from tests.support.waiting import happens

_CHUNK = bytes(2**16)


def mount(world: World, folder: Path, *, mib: int) -> None:
    """Mount an empty disk of so many MiB at `folder`, until the world ends. Raises Skipped."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", folder], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skipped("mounting a file system needs root on Linux") from error
    world.at_end(subprocess.run, ["umount", "--lazy", folder])


def fill(filling: Path) -> None:
    """Make a file so large that its disk has no room left."""
    with suppress(OSError), filling.open("ab", buffering=0) as file:
        while True:
            file.write(_CHUNK)


class DiskFull(Fault):
    """The disk of a directory is full until the agent has said so."""

    rounds = 20
    bar = "stays up, says so, recovers by itself"
    says: ClassVar[tuple[str, ...]]
    """What the agent logs: one of these texts."""

    @abstractmethod
    def disk(self, world: World) -> Path:
        """Return the directory that has a disk of its own."""

    def prepare(self, world: World) -> None:
        mount(world, self.disk(world), mib=64)

    def strike(self, world: World, rng: random.Random) -> None:
        filling = self.disk(world) / "filling"
        fill(filling)
        world.commit()
        world.said(*self.says, meanwhile=lambda: self.until_said(world, filling))
        filling.unlink()

    def until_said(self, world: World, filling: Path) -> None:
        """Repeat this until the agent has said that the disk is full."""
        fill(filling)  # the agent frees some room when it removes its copies


class StagingFull(DiskFull):
    row = "Disk full: staged copies"
    says = ("no room to copy",)

    def disk(self, world: World) -> Path:
        return world.machine.state / "staging"


class StateDiskFull(DiskFull):
    row = "Disk full: ledger"
    says = ("the disk is full", "no room to copy")  # the ledger, or a copy on the same disk

    def disk(self, world: World) -> Path:
        return world.machine.state


class LogDiskFull(DiskFull):
    row = "Disk full: log"
    says = ("cannot be written",)

    def disk(self, world: World) -> Path:
        return world.machine.state / "log"

    def prepare(self, world: World) -> None:
        super().prepare(world)
        world.machine.set(agent_log_file=self.disk(world) / "agent.log")

    def until_said(self, world: World, filling: Path) -> None:
        # The lines of one sync may fit into the rest of the file's last block.
        world.commit()
        world.settle()

    def heal(self, world: World, rng: random.Random) -> None:
        """Wait until the log goes on in its file."""
        log = self.disk(world) / "agent.log"
        size = log.stat().st_size
        world.commit()
        if not happens(lambda: log.stat().st_size > size, SAY_SECONDS):
            raise NotSettled("the log does not go on in its file")


class TargetFull(DiskFull):
    row = "Disk full: directory that is used as the bucket"
    says = ("No space left on device",)

    def disk(self, world: World) -> Path:
        return world.machine.bucket
