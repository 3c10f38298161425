"""What a restore does: which databases of an upload become which files, and how old files are named that make way.

A name comes out of a manifest and becomes a path: `Part` lets in a database's own file names only, so nothing here
leaves the directory that is restored to.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self, cast

from agent.domain import naming
from agent.domain.databases import SIDECAR_SUFFIXES, database_of, main_name
from agent.domain.errors import RestoreError, SettingsError, WireError
from agent.domain.manifest import Manifest, Part, Rows

ASIDE = ".before-restore-"
SCRATCH = ".akosha-restore-"
"""How a restore's own folder in the directory is named; the upload's id follows."""


@dataclass(frozen=True, slots=True)
class Restorable:
    """One database of an upload: its parts, the main file's first. `folds`: they are to become one file."""

    database: str
    parts: tuple[Part, ...]
    folds: bool
    rows: Rows | None = None

    @property
    def main(self) -> str:
        return main_name(self.database)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its files as they were."""
        return tuple(part.name for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes of its files as they were."""
        return sum(part.raw_size for part in self.parts)

    @property
    def disk_bytes(self) -> int:
        """Bytes that it takes on the disk while it is restored: folding writes new blocks beside the old ones."""
        return self.size * (2 if self.folds else 1)

    @property
    def unverified(self) -> str | None:
        """Why it was not read through when it was uploaded; None where it was."""
        return next((part.unverified_reason or "unknown" for part in self.parts if not part.verified), None)

    @property
    def carried_from(self) -> str | None:
        """The upload whose state of the database this is, where it was carried over."""
        return next((part.carried_from for part in self.parts if part.carried_from), None)

    def carried_age(self, upload_id: str) -> timedelta:
        """Return how much older than its upload the state of the database is."""
        if self.carried_from is None:
            return timedelta()
        return naming.upload_time(upload_id) - naming.upload_time(self.carried_from)


def restorable(manifest: Manifest, *, only: Collection[str] = (), raw: bool = False) -> tuple[Restorable, ...]:
    """Return what of an upload is restored: all, or the databases in `only` (`reflection` or `reflection.duckdb`).

    Raises SettingsError for a name that the upload does not have, RestoreError for what cannot be restored.
    """
    there = sorted({part.database for part in manifest.parts})
    wanted = {database_of(name) or name for name in only}
    if unknown := sorted(wanted - set(there)):
        raise SettingsError(
            f"{manifest.upload_id} has no database {', '.join(unknown)}", hint=f"it has {', '.join(there) or 'none'}"
        )
    found = []
    for database in there:
        if wanted and database not in wanted:
            continue
        # The main file's name is the shortest.
        parts = tuple(sorted(manifest.of(database), key=lambda part: len(part.name)))
        if parts[0].name != main_name(database):
            raise RestoreError(
                f"{manifest.upload_id} has sidecars of {database}, and lacks its main file",
                hint="restore an earlier upload: akosha-agent uploads lists them",
            )
        found.append(Restorable(database, parts, len(parts) > 1 and not raw, manifest.rows.get(database)))
    if not found:
        raise RestoreError(f"{manifest.upload_id} holds no database", hint="akosha-agent uploads lists the others")
    return tuple(found)


def family(database: str) -> tuple[str, ...]:
    """Return the names that a database's files can have, the main file's first."""
    return main_name(database), *(main_name(database) + suffix for suffix in SIDECAR_SUFFIXES)


def aside_names(names: Iterable[str], taken: Collection[str], at: datetime) -> Mapping[str, str]:
    """Return where old files go: each name -> a name that no file has, and that no program takes for a database.

    A main file and its sidecars stay a pair: DuckDB finds the WAL of `X` in `X.wal`.
    """
    names = list(names)
    for count in range(1, len(taken) + 2):
        ending = f"{ASIDE}{at.astimezone(UTC):%Y%m%dT%H%M%SZ}" + (f"-{count}" if count > 1 else "")
        found = {name: _aside(name, ending) for name in names}
        if not set(found.values()) & set(taken):
            return found
    raise AssertionError("of n + 1 endings one is free")


def _aside(name: str, ending: str) -> str:
    database = database_of(name)
    assert database is not None
    main = main_name(database)
    return f"{main}{ending}{name.removeprefix(main)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredDatabase:
    """What became of one database: its files now, and where the old ones are (name -> name).

    `folded`: main file and sidecars became one. `rows` per table, empty where they were not counted.
    `storage_version` is the main file's, None where it is not known.
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
    """What a restore did. `downloaded_bytes`: what came over the wire this time."""

    system_id: str
    upload_id: str
    uploaded_at: str
    to: str
    databases: tuple[RestoredDatabase, ...]
    downloaded_bytes: int
    duration_seconds: float

    def to_document(self) -> dict[str, object]:
        """Return it as JSON's types."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Self:
        """Return what `to_document` made. Raises WireError."""
        try:
            fields = {name: document[name] for name in cls.__dataclass_fields__}
            documents = cast("list[dict[str, object]]", fields["databases"])
            databases = tuple(
                RestoredDatabase(**{**one, "files": tuple(cast("list[str]", one["files"]))})  # type: ignore[arg-type]
                for one in documents
            )
            return cls(**{**fields, "databases": databases})  # type: ignore[arg-type] # it is our own writing
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"not what a restore wrote down: {error}") from error
