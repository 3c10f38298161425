"""Disks that are unmounted and mounted again, below the data directory and below the directory used as the bucket."""

import random
import subprocess
from abc import abstractmethod
from pathlib import Path

from agent.domain.databases import NO_DATABASES
from tests.campaign.faults.disks import mount
from tests.campaign.faults.fault import Fault
from tests.campaign.world import SAY_SECONDS, NotSettled, World
from tests.support.files import files_in
from tests.support.waiting import happens

MIB = 128
"""Size of the disk."""


class Unmounted(Fault):
    """The disk of a directory is unmounted, so that the directory is empty, until the agent has said so."""

    rounds = 20
    bar = "says so; the newest state arrives; nothing is written into the mount point"
    typical_seconds = 6.0

    @abstractmethod
    def folder(self, world: World) -> Path:
        """Return the mount point."""

    @abstractmethod
    def until_said(self, world: World, rng: random.Random) -> None:
        """Wait until the agent has said that the disk is missing. Raises NotSettled."""

    def prepare(self, world: World) -> None:
        self.disk = world.folder / "disk"
        mount(world, self.disk, mib=MIB)
        self.folder(world).mkdir(exist_ok=True)
        self._mount(world)
        world.at_end(self._unmount, world)

    def strike(self, world: World, rng: random.Random) -> None:
        self._unmount(world)
        self.until_said(world, rng)
        left = [*files_in(self.folder(world))]
        self._mount(world)
        if left:
            raise NotSettled(f"was written into the mount point: {', '.join(map(str, left))}")

    def _mount(self, world: World) -> None:
        subprocess.run(["mount", "--bind", self.disk, self.folder(world)], check=True)

    def _unmount(self, world: World) -> None:
        subprocess.run(["umount", "--lazy", self.folder(world)], check=True)


class DataDirectoryUnmounted(Unmounted):
    """The writer keeps its files open, and commits nothing meanwhile."""

    row = "Data directory unmounted"

    def folder(self, world: World) -> Path:
        return world.machine.data

    def until_said(self, world: World, rng: random.Random) -> None:
        if not happens(lambda: NO_DATABASES in world.machine.call("status").out, SAY_SECONDS):
            raise NotSettled("status does not show that there are no databases")


class TargetUnmounted(Unmounted):
    """The agent writes nothing into the mount point, whether it goes on or is started anew meanwhile."""

    row = "Directory that is used as the bucket unmounted"

    def folder(self, world: World) -> Path:
        return world.machine.bucket

    def until_said(self, world: World, rng: random.Random) -> None:
        if rng.random() < 0.3:
            world.kill_agent()
            world.start_agent()
        world.commit()
        world.warns("target_not_mounted")
        world.said("is the disk mounted?")
