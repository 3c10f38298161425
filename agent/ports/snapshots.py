"""Consistent copies of databases that another process writes, and their compression."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.domain.databases import Fingerprint, Survey, main_name
from agent.domain.errors import SnapshotError
from agent.domain.upload_parts import Compression
from agent.domain.upload_plan import RawFile
from agent.ports.objects import Progress, ignore_progress

_CHECK_HINT = "the agent retries; after an upgrade of akosha-agent: akosha-agent service restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A consistent copy of one database: main file and sidecars as of one moment, in a private folder.

    `fingerprint` was taken before copying started, so that any later change is detected. `checked`: the verification
    has ended. `verified`: DuckDB opened the copy and read all of it, or replayed the WAL and counted the rows if it had
    read all of a copy with the same main file within a day before; `rows` counts the rows per table. If DuckDB could
    read only a part, `rows` counts that part, and the copy is not verified. `inconclusive`: the verification failed,
    not the copy; it may succeed later. `unreadable`: DuckDB cannot read it, or not all of it, and
    its format is not the reason. `storage_version` of the main file tells which DuckDB reads it.
    """

    database: str
    folder: Path
    files: tuple[RawFile, ...]
    fingerprint: Fingerprint
    header_iteration: int | None
    checked: bool = True
    verified: bool = False
    unverified_reason: str = ""
    inconclusive: bool = False
    unreadable: bool = False
    rows: Mapping[str, int] = field(default_factory=dict)
    storage_version: int | None = None

    @property
    def main_sha256(self) -> str:
        """The SHA-256 of the main file."""
        return next((file.sha256 for file in self.files if file.name == main_name(self.database)), "")

    @property
    def is_readable(self) -> bool:
        """Whether DuckDB can read memories from the copy, if only a part of them."""
        return self.verified or bool(self.rows)

    def check_error(self) -> SnapshotError:
        """Return why the copy is not verified; transient if that is inconclusive."""
        hint = _CHECK_HINT if self.inconclusive else ""
        return SnapshotError(self.unverified_reason, hint=hint, transient=self.inconclusive)


class SnapshotTaker(Protocol):
    """Copies databases that another process writes. Never opens the originals with DuckDB, locks or writes them."""

    async def survey(self) -> Survey:
        """Return the fingerprints of all databases in the data directory; reads at most 12,288 bytes of each.

        Includes databases that are not regular files, for which `take` raises. Raises SnapshotError if the directory
        does not exist or cannot be read.
        """
        ...

    async def free_bytes(self) -> int | None:
        """Return the disk space in bytes that is available for copies, None if unknown."""
        ...

    async def take(self, database: str) -> Snapshot:
        """Copy, hash and verify one database; once more if the copy looks damaged.

        Raises SnapshotError, transient if the file changed too often.
        """
        ...

    async def copy(self, database: str) -> Snapshot:
        """Copy and hash one database. The copy is not `checked`. Raises SnapshotError like `take`."""
        ...

    async def verify(self, snapshot: Snapshot) -> Snapshot:
        """Verify a copy that is not `checked`, and return it with the result.

        Raises DamagedCopy if it looks damaged. After any other error, and after a cancellation, the copy is removed.
        """
        ...

    async def discard(self, snapshot: Snapshot) -> None:
        """Remove a copy."""
        ...

    async def sweep(self) -> None:
        """Remove all copies, including those that a killed process left."""
        ...


class Mirror(Protocol):
    """Keeps main files of databases as they were copied, to compare later copies with and to make patches from."""

    async def file(self, database: str, sha256: str) -> Path | None:
        """Return the main file with this SHA-256, None if the mirror does not have it.

        Its bytes were checked: they are those that were copied. Do not change it.
        """
        ...

    async def retain(self, database: str, digests: Collection[str]) -> None:
        """Keep the main files with these SHA-256 besides the latest one, and remove the database's other files."""
        ...


class Compressor(Protocol):
    """Compresses staged files."""

    @property
    def compression(self) -> Compression:
        """The compression's name in metadata and manifests."""
        ...

    def stream(
        self, path: Path, *, checksums: Sequence[int] | None = None, read: Progress = ignore_progress
    ) -> AsyncGenerator[bytes, None]:
        """Yield the compressed file in pieces of bounded size, compressed outside the event loop.

        `checksums` are those of `RawFile`: no piece of a mebibyte that differs is yielded, and
        StagedCopyChanged is raised. `read` is called before each piece with the number of uncompressed bytes in it.
        """
        ...
