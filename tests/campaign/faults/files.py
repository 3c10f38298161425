"""The data directory and the files in it."""

import random
import shutil
import time
from abc import abstractmethod
from pathlib import Path

from tests.campaign.faults.fault import Fault
from tests.campaign.world import World
from tests.support.session_buddy import create

MOST_COMMITS = 20
"""Most commits in each of the databases that replace others."""

OTHER_FILES = 10_000
UNRELATED = ("other-{}.txt", "backup-{}.duckdb", "reflection.duckdb.{}", "knowledge_graph.duckdb-{}", "notes_{}.db")
"""Names of files that are not databases of Session-Buddy."""

RENAMES = 2_000


class FilesFault(Fault):
    rounds = 20
    bar = "the newest state arrives"
    typical_seconds = 6.0


class DataDirectoryMoved(FilesFault):
    """The data directory is moved away and back, while the writer has its databases open."""

    row = "Data directory moved away and back"

    def strike(self, world: World, rng: random.Random) -> None:
        data = world.machine.data
        aside = data.with_name("data-aside")
        data.rename(aside)
        how = rng.choice(("at once", "noticed", "another"))
        if how == "noticed":
            until_missing(world)
        elif how == "another":
            data.mkdir()
            time.sleep(rng.uniform(0, 1))
            data.rmdir()
        aside.rename(data)


class FilesReplaced(FilesFault):
    """The writer ends, its files are replaced, and a writer goes on with what it finds."""

    def strike(self, world: World, rng: random.Random) -> None:
        end_writer(world, rng)
        self.replace(world, rng)
        world.start_writer()

    @abstractmethod
    def replace(self, world: World, rng: random.Random) -> None:
        """Replace the files of the databases."""


def until_missing(world: World) -> None:
    """Wait until the agent shows that the data directory is missing.

    It does not log that again if it has not noticed meanwhile that the directory was back.
    """
    world.shows("a missing data directory", lambda status: status["notes"].get("watcher", "").startswith("waiting for"))


def end_writer(world: World, rng: random.Random) -> None:
    """Close or kill the writer: its last commits are in the main files, or in the WAL."""
    rng.choice((world.close_writer, world.crash_writer))()


class DataDirectoryDeleted(FilesReplaced):
    row = "Data directory deleted"

    def replace(self, world: World, rng: random.Random) -> None:
        shutil.rmtree(world.machine.data)
        until_missing(world)


class DataDirectoryRecreated(FilesReplaced):
    row = "Data directory deleted and recreated at once"

    def replace(self, world: World, rng: random.Random) -> None:
        shutil.rmtree(world.machine.data)


class DataDirectorySwapped(FilesReplaced):
    """The other directory has the databases of the round before, at first unrelated ones."""

    row = "Data directory swapped with another"

    def replace(self, world: World, rng: random.Random) -> None:
        data = world.machine.data
        other, aside = data.with_name("data-other"), data.with_name("data-aside")
        if not other.exists():
            create_others(other, rng)
        data.rename(aside)
        other.rename(data)
        aside.rename(other)


class ReplacedByOlder(FilesReplaced):
    """Both databases, or one of them, are replaced by an earlier copy, like one of a backup."""

    row = "Database replaced by an older copy of itself"

    def replace(self, world: World, rng: random.Random) -> None:
        older = world.machine.data.with_name("data-older")
        if not older.exists():
            shutil.copytree(world.machine.data, older)
            world.start_writer()
            world.commit(rng.randint(1, 3))
            end_writer(world, rng)
        put_in_place(older, world.machine.data, rng)
        if rng.random() < 0.3:  # the next older copy is one of the present state
            shutil.rmtree(older)


class ReplacedByAnother(FilesReplaced):
    """Both databases, or one of them, are replaced by unrelated ones with a random number of commits."""

    row = "Database replaced by another"

    def replace(self, world: World, rng: random.Random) -> None:
        other = world.machine.data.with_name("data-other")
        create_others(other, rng)
        put_in_place(other, world.machine.data, rng)
        shutil.rmtree(other)


def create_others(folder: Path, rng: random.Random) -> None:
    """Create databases that have nothing to do with the writer's."""
    create(folder, commits=rng.randint(1, MOST_COMMITS), entities=rng.randint(1, MOST_COMMITS), own=True)


def put_in_place(source: Path, data: Path, rng: random.Random) -> None:
    """Replace databases by those of `source`: by a rename or in the same file, with the old times or new ones."""
    copy = rng.choice((shutil.copy, shutil.copy2))
    for database in rng.choice((("reflection",), ("knowledge_graph",), ("reflection", "knowledge_graph"))):
        in_place = rng.random() < 0.5
        for path in data.glob(f"{database}.duckdb.*"):
            path.unlink()
        for path in sorted(source.glob(f"{database}.duckdb*")):
            draft = data / f"draft-{path.name}"
            to = data / path.name
            copy(path, to if in_place else draft)
            if not in_place:
                draft.replace(to)


class OtherFiles(FilesFault):
    """10,000 files appear in the data directory and disappear again."""

    row = "10,000 unrelated files in the data directory"

    def strike(self, world: World, rng: random.Random) -> None:
        paths = [world.machine.data / rng.choice(UNRELATED).format(number) for number in range(OTHER_FILES)]
        for path in paths:
            path.touch()
        world.commit()
        world.settle()
        for path in paths:
            path.unlink()


class Renames(FilesFault):
    """Files are renamed all the time, the databases among them."""

    row = "2,000 renames in the data directory"

    def strike(self, world: World, rng: random.Random) -> None:
        data = world.machine.data
        others = [data / f"other-{number}.txt" for number in range(20)]
        for path in others:
            path.touch()
        for _ in range(RENAMES):
            path = rng.choice((*others, *data.glob("*.duckdb*")))
            aside = path.with_name(f"renamed-{path.name}")
            path.rename(aside)
            aside.rename(path)
        for path in others:
            path.unlink()
