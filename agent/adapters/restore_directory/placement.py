"""Moves old files aside and new files into place. A journal is written first; the order keeps each step consistent.

For each database:

    1  copy the old sidecars aside            the old files are unchanged
    2  rename the old main file aside         the old files are complete under new names; the old name is free
    3  remove the old sidecars
    4  rename the new sidecars into place     (only if the restore does not fold them)
    5  rename the new main file into place    the new database is complete

At no time does a main file have another file's WAL next to it, or lack its own sidecars. The next restore in the same
directory completes a killed one, unless another program has changed the files.
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
from agent.domain.parsing import parse_json
from agent.domain.restore_plan import family

_NEW_JOURNAL = "journal.new"


@dataclass(frozen=True, slots=True)
class FileMove:
    """A file to rename, from the scratch folder or within the directory. `look` is its status before the rename.

    The field names are part of the journal's format, and earlier versions of the agent may have left a journal.
    """

    source: str
    to: str
    look: FileStatus


@dataclass(frozen=True, slots=True)
class Placement:
    """The renames for one database: `new` files into place, the main file last, and `old` files aside."""

    database: str
    new: tuple[FileMove, ...]
    old: tuple[FileMove, ...]

    @property
    def main(self) -> FileMove:
        return self.new[-1]


@dataclass(frozen=True, slots=True)
class Journal:
    """The files to move, and the report to return afterwards."""

    placements: tuple[Placement, ...]
    report: Mapping[str, object]

    def write(self, scratch: Scratch) -> None:
        """Write the journal to the scratch folder; from then on, this restore or the next one completes it.

        Raises OSError.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NEW_JOURNAL, dir_fd=scratch.descriptor)
        fs.write_new(_NEW_JOURNAL, json.dumps(asdict(self)).encode(), dir_fd=scratch.descriptor)
        scratch.move(_NEW_JOURNAL, JOURNAL)
        fs.sync(scratch.descriptor)

    @classmethod
    def read(cls, scratch: Scratch) -> Self | None:
        """Return the journal of a killed restore, None if it had not written one. Raises OSError, WireError."""
        try:
            descriptor = os.open(JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=scratch.descriptor)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            try:
                document = parse_json(file.read())
                return cls(tuple(_placement(one) for one in document["placements"]), dict(document["report"]))
            except (ValueError, TypeError, KeyError) as error:
                raise WireError(f"{scratch.path / JOURNAL} is not a valid journal: {error}") from error

    @staticmethod
    def drop(scratch: Scratch) -> None:
        """Remove the journal: the restore is not completed. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(JOURNAL, dir_fd=scratch.descriptor)


def plan(
    database: str, names: Sequence[str], *, folded: bool, aside: Mapping[str, str], scratch: Scratch, folder: int
) -> Placement:
    """Return the renames for one database, and flush its new files to the disk. `names` begins with the main file's.

    Raises OSError.
    """
    new = []
    for name in reversed(names):
        source = f"{FOLDED if folded else RAW}/{name}"
        sync_file(source, scratch.descriptor)
        new.append(FileMove(source, name, _status(source, scratch.descriptor)))
    old = tuple(FileMove(name, to, _status(name, folder)) for name, to in aside.items())
    return Placement(database, tuple(new), old)


def put_in_place(placement: Placement, scratch: Scratch, folder: int) -> None:
    """Carry out the renames that have not been done yet.

    Raises RestoreError if another program has changed the files, OSError.
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
    """Check that each file is the old one or the one that this restore put there. Raises RestoreError, OSError."""
    expected: dict[str, set[FileStatus]] = {}
    for old in placement.old:
        expected.setdefault(old.source, set()).add(old.look)
    for new in placement.new:
        if FileStatus.at(new.source, scratch.descriptor) is None:
            expected.setdefault(new.to, set()).add(new.look)
    for name in family(placement.database):
        status = FileStatus.at(name, folder)
        if status is not None and status not in expected.get(name, ()):
            raise RestoreError(
                f"{name} changed during the restore", hint="stop the program that writes to it, and restore again"
            )


def _copy_aside(old: FileMove, scratch: Scratch, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(INCOMING, dir_fd=scratch.descriptor)
    copy_file(old.source, folder, INCOMING, scratch.descriptor)
    os.rename(INCOMING, old.to, src_dir_fd=scratch.descriptor, dst_dir_fd=folder)


def _status(name: str, folder: int) -> FileStatus:
    status = FileStatus.at(name, folder)
    if status is None:
        raise FileNotFoundError(name)
    return status


def _placement(document: Mapping[str, object]) -> Placement:
    def file_move(one: Mapping[str, object]) -> FileMove:
        return FileMove(str(one["source"]), str(one["to"]), FileStatus(**one["look"]))  # type: ignore[arg-type]

    new, old = document["new"], document["old"]
    if not (isinstance(new, list) and isinstance(old, list)):
        raise TypeError("the files of a placement are not lists")
    return Placement(str(document["database"]), tuple(map(file_move, new)), tuple(map(file_move, old)))
