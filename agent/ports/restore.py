"""Ports of a restore: its scratch directory, its destination, and folding of sidecars into main files."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agent.domain.manifest import Rows
from agent.domain.restore_plan import Restorable, Restored


class ScratchDirectory(Protocol):
    """A directory for downloaded files, on the file system of the destination. Its methods block and raise OSError."""

    def has(self, name: str, size: int, sha256: str) -> bool:
        """Return whether a file was downloaded and is correct; remove one that is not correct."""
        ...

    def incoming(self) -> Path:
        """Return the path for the next download."""
        ...

    def keep(self, name: str) -> None:
        """Keep the last download as this file; the caller has checked it."""
        ...

    def kept(self, name: str) -> Path:
        """Return the path of a kept file."""
        ...

    def drop(self, names: Iterable[str]) -> None:
        """Remove kept files."""
        ...

    def begin_folding(self, names: Iterable[str]) -> Path:
        """Move files into a folder to be folded, and return the folder."""
        ...

    def end_folding(self, main: str) -> None:
        """Keep the main file, which now contains its sidecars, as the folded file."""
        ...

    def undo_folding(self, names: Iterable[str]) -> None:
        """Move the files back; `has` checks whether they are unchanged."""
        ...

    def folded(self, main: str) -> int | None:
        """Return the size of the folded file, None if it does not exist."""
        ...

    def file(self, main: str) -> Path:
        """Return the path of a main file: the folded one if it exists, else the downloaded one."""
        ...


class RestoreDirectory(Protocol):
    """The destination of a restore. Its methods block and raise RestoreError."""

    @property
    def directory(self) -> Path: ...

    def check(self, databases: Sequence[str], *, force: bool) -> None:
        """Raise if a process has one of the databases open, or if its files exist and not `force`."""
        ...

    def begin(self, upload: str) -> ScratchDirectory:
        """Create or reopen the scratch directory of an upload, and remove those of other uploads."""
        ...

    def free_bytes(self) -> int:
        """Return the free disk space in bytes."""
        ...

    def aside_names(self, databases: Sequence[str], at: datetime) -> Mapping[str, Mapping[str, str]]:
        """Return, per database, the new names of its existing files."""
        ...

    def install(
        self,
        items: Sequence[tuple[Restorable, bool]],
        aside: Mapping[str, Mapping[str, str]],
        report: Restored,
        *,
        force: bool,
    ) -> None:
        """Move the files to their final names, after repeating `check`, and remove the scratch directory.

        `items` are the databases, each with whether it was folded.
        """
        ...

    def discard(self) -> None:
        """Remove the scratch directory."""
        ...


class WalMerger(Protocol):
    """Merges sidecars into their main file."""

    async def fold(self, main: Path) -> Rows:
        """Fold the sidecars of `main` into it, and return the number of rows per table.

        Raises SnapshotError if DuckDB cannot do it, with a hint that says which DuckDB opens the files; StagingFull.
        """
        ...

    def storage_version(self, main: Path) -> int | None:
        """Return the storage version of a main file, None if it is not a database. Blocks."""
        ...
