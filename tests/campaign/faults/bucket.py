"""The bucket is changed behind the agent's back."""

import random
import shutil
from pathlib import Path

from tests.campaign.faults.fault import Fault
from tests.campaign.world import World


class BucketChanged(Fault):
    """Somebody deletes, flips or swaps objects of the newest upload."""

    row = "Objects deleted, flipped or swapped behind the agent's back"
    rounds = 20
    bar = "found and repaired"
    delayed = False

    def prepare(self, world: World) -> None:
        world.machine.set(agent_prune="false")  # the uploads that are damaged here stay

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
