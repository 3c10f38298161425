"""The plan and the report of a restore: the databases to restore, their files, and new names for existing files.

File names come from a manifest and become paths: `Part` accepts only file names of its database, so that no path leaves
the destination directory.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self, cast

from agent.domain import naming
from agent.domain.databases import SIDECAR_SUFFIXES, database_of, main_name
from agent.domain.errors import RestoreError, SettingsError, WireError
from agent.domain.manifest import Manifest, Rows
from agent.domain.upload_parts import Part

ASIDE = ".before-restore-"
SCRATCH = ".akosha-restore-"
"""Prefix of the name of the scratch directory in the destination; the upload's ID follows."""


@dataclass(frozen=True, slots=True)
class Restorable:
    """One database of an upload: its parts, main file first. `folds`: DuckDB merges its sidecars into the main file."""

    database: str
    parts: tuple[Part, ...]
    folds: bool
    rows: Rows | None = None

    @property
    def main(self) -> str:
        return main_name(self.database)

    @property
    def names(self) -> tuple[str, ...]:
        """The original names of its files."""
        return tuple(part.name for part in self.parts)

    @property
    def size(self) -> int:
        """Total size of its files in bytes, before folding."""
        return sum(part.raw_size for part in self.parts)

    @property
    def disk_bytes(self) -> int:
        """Disk space in bytes that the restore needs: folding writes new blocks before it frees the old ones."""
        return self.size * (2 if self.folds else 1)

    @property
    def unverified(self) -> str | None:
        """Why the database was not verified when it was uploaded, None if it was."""
        return next((part.unverified_reason or "unknown" for part in self.parts if not part.verified), None)

    @property
    def carried_from(self) -> str | None:
        """The upload that sent this state of the database, if it was carried over."""
        return next((part.carried_from for part in self.parts if part.carried_from), None)

    def carried_age(self, upload_id: str) -> timedelta:
        """Return how much older than its upload the database's state is."""
        if self.carried_from is None:
            return timedelta()
        return naming.upload_time(upload_id) - naming.upload_time(self.carried_from)


def restorable(manifest: Manifest, *, only: Collection[str] = (), raw: bool = False) -> tuple[Restorable, ...]:
    """Return the databases to restore: all, or those in `only` (`reflection` or `reflection.duckdb`).

    Raises SettingsError for a name that is not in the upload, RestoreError if a database cannot be restored.
    """
    available = sorted({part.database for part in manifest.parts})
    wanted = {database_of(name) or name for name in only}
    if unknown := sorted(wanted - set(available)):
        raise SettingsError(
            f"{manifest.upload_id} has no database {', '.join(unknown)}",
            hint=f"it has {', '.join(available) or 'none'}",
        )
    found = []
    for database in available:
        if wanted and database not in wanted:
            continue
        # The main file's name is the shortest.
        parts = tuple(sorted(manifest.of(database), key=lambda part: len(part.name)))
        if parts[0].name != main_name(database):
            raise RestoreError(
                f"{manifest.upload_id} has sidecars of {database} but not its main file",
                hint="restore an earlier upload: akosha-agent uploads lists them",
            )
        found.append(Restorable(database, parts, len(parts) > 1 and not raw, manifest.rows.get(database)))
    if not found:
        raise RestoreError(f"{manifest.upload_id} contains no database", hint="akosha-agent uploads lists the others")
    return tuple(found)


def family(database: str) -> tuple[str, ...]:
    """Return all names that a database's files can have, main file first."""
    return main_name(database), *(main_name(database) + suffix for suffix in SIDECAR_SUFFIXES)


def aside_names(names: Iterable[str], taken: Collection[str], at: datetime) -> Mapping[str, str]:
    """Return new names for existing files: name -> an unused name that no program takes for a database.

    Main file and sidecars keep matching names, because DuckDB looks for the WAL of `X` in `X.wal`.
    """
    names = list(names)
    for count in range(1, len(taken) + 2):
        ending = f"{ASIDE}{at.astimezone(UTC):%Y%m%dT%H%M%SZ}" + (f"-{count}" if count > 1 else "")
        found = {name: _aside(name, ending) for name in names}
        if not set(found.values()) & set(taken):
            return found
    raise AssertionError("one of n + 1 endings is free")


def _aside(name: str, ending: str) -> str:
    database = database_of(name)
    assert database is not None
    main = main_name(database)
    return f"{main}{ending}{name.removeprefix(main)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredDatabase:
    """The result for one database: its files, and the new names of the files that it replaced (name -> name).

    `folded`: the sidecars were merged into the main file. `rows` per table, empty if they were not counted.
    `storage_version` is the main file's, None if unknown.
    """

    database: str
    files: tuple[str, ...]
    size: int
    folded: bool
    rows: Rows
    carried_from: str | None = None
    carried_age_seconds: float = 0.0
    storage_version: int | None = None
    warning: str = ""
    set_aside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The report of a restore. `downloaded_bytes` counts the bytes that this run downloaded."""

    system_id: str
    upload_id: str
    uploaded_at: str
    to: str
    databases: tuple[RestoredDatabase, ...]
    downloaded_bytes: int
    duration_seconds: float

    def to_document(self) -> dict[str, object]:
        """Return the report as JSON types."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Self:
        """Return the report from the result of `to_document`. Raises WireError."""
        try:
            fields = {name: document[name] for name in cls.__dataclass_fields__}
            documents = cast("list[dict[str, object]]", fields["databases"])
            databases = tuple(
                RestoredDatabase(**{**one, "files": tuple(cast("list[str]", one["files"]))})  # type: ignore[arg-type]
                for one in documents
            )
            return cls(**{**fields, "databases": databases})  # type: ignore[arg-type] # written by `to_document`
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"not a report of a restore: {error}") from error
