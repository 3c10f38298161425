"""The files around the databases."""

import random
import time

from tests.campaign.faults.fault import Fault
from tests.campaign.world import World


class DataDirectory(Fault):
    """The data directory is deleted or swapped and comes back, or is full of other files."""

    row = "Data directory deleted, swapped, or full of other files"
    rounds = 20
    bar = "the newest state arrives"

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
