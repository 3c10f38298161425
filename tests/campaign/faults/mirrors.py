"""The mirror in the state directory, which the agent must never trust."""

import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.campaign.faults.fault import Fault
from tests.campaign.world import World


def _flip(path: Path, rng: random.Random) -> None:
    """Flip a bit as a disk does: the times of the file stay the same."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(rng.randrange(status.st_size))
        byte = file.read(1)[0] ^ 1 << rng.randrange(8)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _exchange(path: Path, rng: random.Random) -> None:
    """Put another file of the mirror in the place of this one."""
    other = rng.choice([other for other in path.parent.parent.glob("*/*") if other != path])
    path.unlink()
    shutil.copyfile(other, path)


def _leave(path: Path, _: random.Random) -> None:
    path.with_name("left by another program").write_bytes(b"x")


_CHANGES: Mapping[str, Callable[[Path, random.Random], object]] = {
    "flip": _flip,
    "cut": _cut,
    "exchange": _exchange,
    "delete": lambda path, _: path.unlink(),
    "delete the database's": lambda path, _: shutil.rmtree(path.parent),
    "delete all": lambda path, _: shutil.rmtree(path.parent.parent),
    "leave a file": _leave,
}


class MirrorChanged(Fault):
    """A bit flips in the mirror, or files of it are cut, exchanged, deleted or added; the agent may start anew."""

    row = "Mirror flipped, cut, exchanged or deleted"
    rounds = 60
    delayed = False

    def __init__(self) -> None:
        super().__init__()
        self.struck.update(dict.fromkeys(_CHANGES, 0))

    def strike(self, world: World, rng: random.Random) -> None:
        restarts = rng.random() < 0.5
        if restarts:
            world.kill_agent()
        how = rng.choice([*_CHANGES, "flip", "flip"])
        if paths := sorted((world.machine.state / "mirror").glob("*/*")):
            _CHANGES[how](rng.choice(paths), rng)
            self.struck[how] += 1
        if rng.random() < 0.3:
            world.writer.run("checkpoint")
        if restarts:
            world.start_agent()
