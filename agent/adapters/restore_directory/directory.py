"""The directory that a restore writes to. Every call blocks, so callers use a thread.

All file operations use the directory's open descriptor and do not follow links: nothing is written outside it.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self

from agent.adapters import fs
from agent.adapters.restore_directory.placement import Journal, check, plan, put_in_place
from agent.adapters.restore_directory.scratch import FileStatus, Scratch, ScratchInUse, names_in, unusable
from agent.domain.databases import database_of, main_name
from agent.domain.errors import NamingError, RestoreError, WireError
from agent.domain.naming import upload_time
from agent.domain.restore_plan import SCRATCH, Restorable, Restored, aside_names, family
from agent.domain.upload_parts import LONGEST_NAME_BYTES

FindHolder = Callable[[str, int], object | None]
"""Takes a file's name and the directory's descriptor. Returns the process that has the file open, or None.

Raises OSError.
"""


class RestoreDirectoryFiles:
    """`agent.ports.restore.RestoreDirectory` on a local directory, which stays open until `close`."""

    def __init__(self, directory: Path, find_holder: FindHolder) -> None:
        """Open the directory; create it if it does not exist. Raises RestoreError."""
        self.directory = Path(os.path.abspath(directory))  # noqa: PTH100 - does not resolve links
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
        """Complete killed restores that had started to replace files; return the result of each.

        Raises RestoreError if a process has a database open.
        """
        finished = []
        with self._translated():
            for upload in self._scratch_uploads():
                try:
                    scratch = Scratch(self.directory, self._folder, upload, make=False)
                except (ScratchInUse, FileNotFoundError):
                    continue
                try:
                    if (report := self._finish(scratch)) is not None:
                        finished.append(report)
                finally:
                    scratch.close()
        return tuple(finished)

    def check(self, databases: Sequence[str], *, force: bool) -> None:
        """Raise RestoreError if a process has a database open, or if files exist and `force` is not set."""
        with self._translated():
            self._check_not_open()
            in_the_way = []
            for database in databases:
                existing = self._existing(database)
                for name, status in existing.items():
                    if not status.regular:
                        raise RestoreError(f"{self.directory / name} is not a regular file", hint="move it away")
                if existing and main_name(database) not in existing:
                    in_the_way += [f"{name} (of another {main_name(database)})" for name in existing]
                else:
                    in_the_way += existing
            if in_the_way and not force:
                raise RestoreError(
                    f"nothing is overwritten in {self.directory}: it already contains {', '.join(in_the_way)}",
                    hint="restore to another directory, or use --force, which moves the old files aside",
                )

    def begin(self, upload: str) -> Scratch:
        """Create or reopen the scratch folder of this upload; remove unused ones of other uploads.

        Raises RestoreError.
        """
        with self._translated():
            for other in self._scratch_uploads():
                if other != upload:
                    self._sweep(other)
            try:
                self._scratch = Scratch(self.directory, self._folder, upload, make=True)
            except ScratchInUse as error:
                raise RestoreError(
                    f"another restore of {upload} is running in {self.directory}", hint="wait for it, or stop it"
                ) from error
            self._scratch.tidy()
            return self._scratch

    def free_bytes(self) -> int:
        """Return the free space in bytes."""
        with self._translated():
            status = os.fstatvfs(self._folder)
            return status.f_bavail * status.f_frsize

    def aside_names(self, databases: Sequence[str], at: datetime) -> dict[str, Mapping[str, str]]:
        """Return, per database, the names to which its old files will be renamed."""
        with self._translated():
            taken = names_in(self._folder)
            renames = {name: aside_names(self._existing(name), taken, at) for name in databases}
            for old, new in (renamed for names in renames.values() for renamed in names.items()):
                if len(new.encode()) > LONGEST_NAME_BYTES:
                    raise RestoreError(
                        f"the name of {self.directory / old} is too long to be kept aside",
                        hint="restore to another directory",
                    )
            return renames

    def install(
        self,
        items: Sequence[tuple[Restorable, bool]],
        aside: Mapping[str, Mapping[str, str]],
        report: Restored,
        *,
        force: bool,
    ) -> None:
        """Move the files of each (item, whether it was folded) into place. Removes the folder. Raises RestoreError."""
        scratch = self._scratch
        assert scratch is not None
        with self._translated():
            self.check([item.database for item, _ in items], force=force)
            journal = Journal(
                tuple(
                    plan(
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
                    f"{known.message}; some of the restored files may be in place already",
                    hint=f"{known.hint}; the next restore to this directory completes it",
                    transient=known.transient,
                ) from error

    def discard(self) -> None:
        """Remove the scratch folder. Raises RestoreError.

        If files have been moved into place already, the folder stays: the next restore completes it.
        """
        with self._translated():
            if self._scratch is not None and not self._placing:
                self._scratch.remove()

    def close(self) -> None:
        """Close the directory. A scratch folder that was not removed stays."""
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
        self._check_not_open()
        try:
            self._carry_out(journal, scratch)
        except RestoreError:
            # Another program has changed the files since the user agreed to replace them: the caller decides again.
            self._check_not_open()
            Journal.drop(scratch)
            return None
        return report

    def _carry_out(self, journal: Journal, scratch: Scratch) -> None:
        for placement in journal.placements:
            check(placement, scratch, self._folder)
        for placement in journal.placements:
            self._check_not_open()
            self._placing = True
            put_in_place(placement, scratch, self._folder)
        scratch.remove()
        fs.sync(self._folder)

    def _check_not_open(self) -> None:
        """Raise RestoreError if a process has a database of the directory open."""
        for name in names_in(self._folder):
            if database_of(name) is not None and (holder := self._find_holder(name, self._folder)) is not None:
                raise RestoreError(
                    f"{holder} has {self.directory / name} open",
                    hint="stop it first (Session-Buddy: close the session), or restore to another directory",
                )

    def _existing(self, database: str) -> dict[str, FileStatus]:
        statuses = {name: FileStatus.at(name, self._folder) for name in family(database)}
        return {name: status for name, status in statuses.items() if status is not None}

    def _scratch_uploads(self) -> list[str]:
        """Return the uploads that have a scratch folder here."""
        uploads = []
        for name in names_in(self._folder):
            upload = name.removeprefix(SCRATCH)
            if upload != name:
                try:
                    upload_time(upload)
                except NamingError:
                    continue
                uploads.append(upload)
        return uploads

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
