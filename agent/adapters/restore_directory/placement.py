"""Old files aside, new ones in their place: a journal first, then an order in which every moment is whole.

For each database:

    1  old sidecars are copied aside             the old pair is unchanged
    2  the old main file is renamed aside        the old pair is aside, whole; there is no database of that name
    3  old sidecars are removed
    4  new sidecars take their names             (of a restore that does not fold)
    5  the new main file takes its name          the new database is there, whole

An old WAL is never beside a new main file, nor a new one beside an old; and no main file ever lacks the sidecars
that belong to it. A restore that was killed in between is finished by the next one in the same directory, as long as
nobody else has changed what it finds.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

from agent.adapters import fs
from agent.adapters.restore_directory.scratch import (
    FOLDED,
    INCOMING,
    JOURNAL,
    RAW,
    FileStatus,
    Scratch,
    copy_file,
    sync_file,
)
from agent.domain.databases import main_name
from agent.domain.errors import RestoreError, WireError
from agent.domain.restore_plan import family

_NEW_JOURNAL = "journal.new"


@dataclass(frozen=True, slots=True)
class FileMove:
    """A file to be renamed, from the scratch folder or within the directory; `look` is its status before.

    The journal has these fields by name, also one that an earlier version of the agent has left.
    """

    source: str
    to: str
    look: FileStatus


@dataclass(frozen=True, slots=True)
class Placement:
    """One database: what comes, its main file last, and what makes way."""

    database: str
    new: tuple[FileMove, ...]
    old: tuple[FileMove, ...]

    @property
    def main(self) -> FileMove:
        return self.new[-1]


@dataclass(frozen=True, slots=True)
class Journal:
    """The files to be moved, and the report to be returned."""

    placements: tuple[Placement, ...]
    report: Mapping[str, object]

    def write(self, scratch: Scratch) -> None:
        """From here on it will be done, by us or by the next. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NEW_JOURNAL, dir_fd=scratch.descriptor)
        fs.write_new(_NEW_JOURNAL, json.dumps(asdict(self)).encode(), dir_fd=scratch.descriptor)
        scratch.move(_NEW_JOURNAL, JOURNAL)
        fs.sync(scratch.descriptor)

    @classmethod
    def read(cls, scratch: Scratch) -> Self | None:
        """Return what a killed restore was about to do, None where it was not that far. Raises OSError, WireError."""
        try:
            descriptor = os.open(JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=scratch.descriptor)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            try:
                document = json.loads(file.read())
                return cls(tuple(_placement(one) for one in document["placements"]), dict(document["report"]))
            except (ValueError, TypeError, KeyError) as error:
                raise WireError(f"{scratch.path / JOURNAL} is no journal of ours: {error}") from error

    @staticmethod
    def drop(scratch: Scratch) -> None:
        """It will not be done. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(JOURNAL, dir_fd=scratch.descriptor)


def planned(
    database: str, names: Sequence[str], *, folded: bool, aside: Mapping[str, str], scratch: Scratch, folder: int
) -> Placement:
    """Return what is to be done for one database; its new files are on the disk. `names`: the main file's first.

    Raises OSError.
    """
    new = []
    for name in reversed(names):
        source = f"{FOLDED if folded else RAW}/{name}"
        sync_file(source, scratch.descriptor)
        new.append(FileMove(source, name, _look(source, scratch.descriptor)))
    old = tuple(FileMove(name, to, _look(name, folder)) for name, to in aside.items())
    return Placement(database, tuple(new), old)


def put_in_place(placement: Placement, scratch: Scratch, folder: int) -> None:
    """Do it, or what is left of it.

    Raises RestoreError where another program has changed the files there, OSError.
    """
    if FileStatus.at(placement.main.source, scratch.descriptor) is None:
        return
    check(placement, scratch, folder)
    main = next((old for old in placement.old if old.source == main_name(placement.database)), None)
    sidecars = [old for old in placement.old if old is not main]
    remaining = [old for old in sidecars if FileStatus.at(old.source, folder) == old.look]
    if main is None or FileStatus.at(main.to, folder) != main.look:
        for old in remaining:
            _copy_aside(old, scratch, folder)
        fs.sync(folder)
        if main is not None and FileStatus.at(main.source, folder) is not None:
            os.rename(main.source, main.to, src_dir_fd=folder, dst_dir_fd=folder)
            fs.sync(folder)
    for old in remaining:
        os.unlink(old.source, dir_fd=folder)
    fs.sync(folder)
    for new in placement.new:
        if FileStatus.at(new.source, scratch.descriptor) is not None:
            os.rename(new.source, new.to, src_dir_fd=scratch.descriptor, dst_dir_fd=folder)
            fs.sync(folder)


def check(placement: Placement, scratch: Scratch, folder: int) -> None:
    """Check that the files there are those of before, or those put there by this restore. Raises RestoreError."""
    expected: dict[str, set[FileStatus]] = {}
    for old in placement.old:
        expected.setdefault(old.source, set()).add(old.look)
    for new in placement.new:
        if FileStatus.at(new.source, scratch.descriptor) is None:
            expected.setdefault(new.to, set()).add(new.look)
    for name in family(placement.database):
        look = FileStatus.at(name, folder)
        if look is not None and look not in expected.get(name, ()):
            raise RestoreError(
                f"{name} was changed while it was to make way", hint="end what writes there, and restore once more"
            )


def _copy_aside(old: FileMove, scratch: Scratch, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(INCOMING, dir_fd=scratch.descriptor)
    copy_file(old.source, folder, INCOMING, scratch.descriptor)
    os.rename(INCOMING, old.to, src_dir_fd=scratch.descriptor, dst_dir_fd=folder)


def _look(name: str, folder: int) -> FileStatus:
    look = FileStatus.at(name, folder)
    if look is None:
        raise FileNotFoundError(name)
    return look


def _placement(document: Mapping[str, object]) -> Placement:
    def file_move(one: Mapping[str, object]) -> FileMove:
        return FileMove(str(one["source"]), str(one["to"]), FileStatus(**one["look"]))  # type: ignore[arg-type] # ours

    new, old = document["new"], document["old"]
    assert isinstance(new, list)
    assert isinstance(old, list)
    return Placement(str(document["database"]), tuple(map(file_move, new)), tuple(map(file_move, old)))
