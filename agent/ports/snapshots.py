"""Right copies of databases that another process writes, and their stored form."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.domain.databases import Fingerprint, Survey
from agent.domain.manifest import Compression
from agent.domain.upload_plan import RawFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A right copy of one database: main file and sidecars as they were at one moment, in a folder of our own.

    `fingerprint` was taken before the copying began, so that any later change shows. `rows` counts the rows per table
    where the copy was `verified`: opened and read through by the engine. Where the engine could read a part of it, they
    are that part's, and it is not verified. `storage_version` is the main file's: it says which DuckDB reads it.
    """

    database: str
    folder: Path
    files: tuple[RawFile, ...]
    fingerprint: Fingerprint
    header_iteration: int | None
    verified: bool
    unverified_reason: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    storage_version: int | None = None

    @property
    def is_readable(self) -> bool:
        """Whether the engine reads memories out of it, be it not all of it."""
        return self.verified or bool(self.rows)


class SnapshotTaker(Protocol):
    """Copies databases that another process is writing. Never opens, locks or writes the originals."""

    async def survey(self) -> Survey:
        """Return the fingerprints of all databases in the data directory; reads 12,288 bytes of each, no more.

        Empty where the directory is missing. What is no regular file is in it too, to be complained about by `take`.
        """
        ...

    async def free_bytes(self) -> int | None:
        """Return how much room there is for copies; None where that cannot be known."""
        ...

    async def take(self, database: str) -> Snapshot:
        """Copy, hash and verify one database. Raises SnapshotError, transient where the file was too busy."""
        ...

    async def discard(self, snapshot: Snapshot) -> None:
        """Remove the copy."""
        ...

    async def sweep(self) -> None:
        """Remove every copy, also those of a process that was killed."""
        ...


class Compressor(Protocol):
    """Reads a staged file as it will be stored."""

    @property
    def compression(self) -> Compression:
        """What it does, as metadata and manifest name it."""
        ...

    def stream(self, path: Path) -> AsyncGenerator[bytes, None]:
        """Yield the stored form of the file, in pieces of bounded size, worked out off the event loop."""
        ...
