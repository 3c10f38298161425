"""What a restore works with: where files come together and stay, what makes files of objects, and one of a pair."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agent.domain.manifest import Rows
from agent.domain.restore_plan import Restorable, Restored


class ScratchDirectory(Protocol):
    """A folder where files come together, on the file system where they will stay. Its calls block.

    They raise OSError.
    """

    def has(self, name: str, size: int, sha256: str) -> bool:
        """Say whether a file has come, and is right; one that is not is removed."""
        ...

    def incoming(self) -> Path:
        """Return where the next one goes."""
        ...

    def keep(self, name: str) -> None:
        """What has come in is this file, and right."""
        ...

    def begin_folding(self, names: Iterable[str]) -> Path:
        """Bring files together to be folded; return their folder."""
        ...

    def end_folding(self, main: str) -> None:
        """The main file holds it all now."""
        ...

    def undo_folding(self, names: Iterable[str]) -> None:
        """Take them apart again; whether they are as they were, `has` tells."""
        ...

    def folded(self, main: str) -> int | None:
        """Return the size of the folded file, None where it is not there."""
        ...

    def file(self, main: str) -> Path:
        """Return where a main file is: the folded one, else the one that has come."""
        ...


class RestoreDirectory(Protocol):
    """The directory that is restored to. Its calls block, and raise RestoreError."""

    @property
    def directory(self) -> Path: ...

    def check(self, databases: Sequence[str], *, force: bool) -> None:
        """Raise where a process has a database open there, or files are in the way and it is not by force."""
        ...

    def begin(self, upload: str) -> ScratchDirectory:
        """Make or take up the folder of an upload, and remove those of others."""
        ...

    def free_bytes(self) -> int:
        """Return how many bytes may still be written."""
        ...

    def aside_names(self, databases: Sequence[str], at: datetime) -> Mapping[str, Mapping[str, str]]:
        """Return where the old files of each database will go."""
        ...

    def install(
        self,
        items: Sequence[tuple[Restorable, bool]],
        aside: Mapping[str, Mapping[str, str]],
        report: Restored,
        *,
        force: bool,
    ) -> None:
        """Put all in its place, each with whether it was folded; checks once more. The folder is gone then."""
        ...

    def discard(self) -> None:
        """Remove the folder."""
        ...


class Folder(Protocol):
    """Makes one file of a main file and its sidecars."""

    async def fold(self, main: Path) -> Rows:
        """Fold what lies beside `main` into it; return the rows per table.

        Raises SnapshotError where the engine cannot; its hint says what opens the files. StagingFull.
        """
        ...

    def storage_version(self, main: Path) -> int | None:
        """Return the storage version of a main file, None where it is no database. Blocks."""
        ...
