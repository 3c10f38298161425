"""The directory that is restored to. Every call blocks: it runs in a thread.

Nothing is ever written outside the directory, and links in it are not followed: what is done there is done through
its open descriptor.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self

from agent.adapters import fs
from agent.adapters.restore_directory.placement import Journal, check, planned, put_in_place
from agent.adapters.restore_directory.scratch import FileStatus, Scratch, ScratchInUse, names_in, unusable
from agent.domain.databases import database_of, main_name
from agent.domain.errors import NamingError, RestoreError, WireError
from agent.domain.manifest import LONGEST_NAME_BYTES
from agent.domain.naming import upload_time
from agent.domain.restore_plan import SCRATCH, Restorable, Restored, aside_names, family

FindHolder = Callable[[str, int], object | None]
"""Says who has a file (its name, the directory's descriptor) open, None for nobody. Raises OSError."""


class RestoreDirectoryFiles:
    """A directory, made where there is none, open until `close`."""

    def __init__(self, directory: Path, find_holder: FindHolder) -> None:
        """Open it. Raises RestoreError."""
        self.directory = Path(os.path.abspath(directory))  # noqa: PTH100 - a link in its name stays one
        self._find_holder = find_holder
        self._scratch: Scratch | None = None
        self._placing = False
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise unusable(self.directory, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def finish(self) -> tuple[Restored, ...]:
        """Complete killed restores that had begun to replace files; return the result of each.

        Raises RestoreError where a process has a database open.
        """
        done = []
        with self._translated():
            for upload in self._left():
                try:
                    scratch = Scratch(self.directory, self._folder, upload, make=False)
                except (ScratchInUse, FileNotFoundError):
                    continue
                try:
                    if (report := self._finish(scratch)) is not None:
                        done.append(report)
                finally:
                    scratch.close()
        return tuple(done)

    def check(self, databases: Sequence[str], *, force: bool) -> None:
        """Raise RestoreError where a process has a database open, or files are in the way that must not be."""
        with self._translated():
            self._free()
            in_the_way = []
            for database in databases:
                there = self._there(database)
                for name, status in there.items():
                    if not status.regular:
                        raise RestoreError(f"{self.directory / name} is no file", hint="move it away")
                if there and main_name(database) not in there:
                    in_the_way += [f"{name} (of another {main_name(database)})" for name in there]
                else:
                    in_the_way += there
            if in_the_way and not force:
                raise RestoreError(
                    f"nothing is overwritten in {self.directory}, where there is {', '.join(in_the_way)}",
                    hint="restore to another directory, or with --force, which keeps the old files aside",
                )

    def begin(self, upload: str) -> Scratch:
        """Make, or take up, the folder of this upload; remove those of others that nobody works in.

        Raises RestoreError.
        """
        with self._translated():
            for other in self._left():
                if other != upload:
                    self._sweep(other)
            try:
                self._scratch = Scratch(self.directory, self._folder, upload, make=True)
            except ScratchInUse as error:
                raise RestoreError(
                    f"another restore of {upload} is at work in {self.directory}", hint="wait for it, or end it"
                ) from error
            self._scratch.tidy()
            return self._scratch

    def free_bytes(self) -> int:
        """Return how many bytes may still be written."""
        with self._translated():
            found = os.fstatvfs(self._folder)
            return found.f_bavail * found.f_frsize

    def aside_names(self, databases: Sequence[str], at: datetime) -> dict[str, Mapping[str, str]]:
        """Return where the old files of each database will go."""
        with self._translated():
            taken = names_in(self._folder)
            found = {name: aside_names(self._there(name), taken, at) for name in databases}
            for old, new in (moved for names in found.values() for moved in names.items()):
                if len(new.encode()) > LONGEST_NAME_BYTES:
                    raise RestoreError(f"the name of {self.directory / old} is too long to be kept aside")
            return found

    def install(
        self,
        items: Sequence[tuple[Restorable, bool]],
        aside: Mapping[str, Mapping[str, str]],
        report: Restored,
        *,
        force: bool,
    ) -> None:
        """Put everything in its place; each with whether it was folded. Removes the folder. Raises RestoreError."""
        scratch = self._scratch
        assert scratch is not None
        with self._translated():
            self.check([item.database for item, _ in items], force=force)
            journal = Journal(
                tuple(
                    planned(
                        item.database,
                        item.names[:1] if folded else item.names,
                        folded=folded,
                        aside=aside[item.database],
                        scratch=scratch,
                        folder=self._folder,
                    )
                    for item, folded in items
                ),
                report.to_document(),
            )
            journal.write(scratch)
            try:
                self._carry_out(journal, scratch)
            except (RestoreError, OSError) as error:
                if not self._placing:
                    raise
                known = error if isinstance(error, RestoreError) else unusable(self.directory, error)
                raise RestoreError(
                    f"{known.message}; of what is restored, some may be in its place already",
                    hint=f"{known.hint}; the next restore to this directory completes it",
                    transient=known.transient,
                ) from error

    def discard(self) -> None:
        """Remove the folder of this restore with all that is in it. Raises RestoreError.

        What is in its place by half stays for the next restore, which completes it.
        """
        with self._translated():
            if self._scratch is not None and not self._placing:
                self._scratch.remove()

    def close(self) -> None:
        """Close the directory; the folder stays, where it was not removed."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _finish(self, scratch: Scratch) -> Restored | None:
        try:
            journal = Journal.read(scratch)
            if journal is None:
                return None
            report = Restored.from_document(journal.report)
        except WireError:
            Journal.drop(scratch)
            return None
        self._free()
        try:
            self._carry_out(journal, scratch)
        except RestoreError:
            # Another program has written there since: the files agreed to are gone, and the caller decides again.
            self._free()
            Journal.drop(scratch)
            return None
        return report

    def _carry_out(self, journal: Journal, scratch: Scratch) -> None:
        for placement in journal.placements:
            check(placement, scratch, self._folder)
        for placement in journal.placements:
            self._free()
            self._placing = True
            put_in_place(placement, scratch, self._folder)
        scratch.remove()
        fs.sync(self._folder)

    def _free(self) -> None:
        """See that no process has a database of the directory open."""
        for name in names_in(self._folder):
            if database_of(name) is not None and (who := self._find_holder(name, self._folder)) is not None:
                raise RestoreError(
                    f"{who} has {self.directory / name} open",
                    hint="end it first (Session-Buddy: close the session), or restore to another directory",
                )

    def _there(self, database: str) -> dict[str, FileStatus]:
        statuses = {name: FileStatus.at(name, self._folder) for name in family(database)}
        return {name: status for name, status in statuses.items() if status is not None}

    def _left(self) -> list[str]:
        """Return the uploads whose folders are there."""
        found = []
        for name in names_in(self._folder):
            upload = name.removeprefix(SCRATCH)
            if upload != name:
                try:
                    upload_time(upload)
                except NamingError:
                    continue
                found.append(upload)
        return found

    def _sweep(self, upload: str) -> None:
        try:
            scratch = Scratch(self.directory, self._folder, upload, make=False)
        except (ScratchInUse, FileNotFoundError, RestoreError):
            return
        try:
            scratch.remove()
        finally:
            scratch.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unusable(self.directory, error) from error
