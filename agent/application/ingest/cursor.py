"""The cursor of a system: which of its uploads Akosha has, and what it lacks of the next upload.

Akosha has a database's rows up to the upload in the database's cursor. A delta whose base is that upload, or an earlier
one, contains everything that is missing; otherwise the database itself is read. Two agents may share a system ID, so
each database of each agent has its own cursor.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from agent.domain.errors import WireError
from agent.domain.manifest import Manifest
from agent.domain.parsing import parse_json


@dataclass(frozen=True, slots=True)
class DatabaseCursor:
    """All rows of the database in `upload` were offered to Akosha. `state` is a digest of the database's files."""

    upload: str
    state: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """`through` is the last finished upload, ingested or refused. The keys of `databases` are `agent/database`."""

    through: str | None = None
    databases: Mapping[str, DatabaseCursor] = field(default_factory=dict)

    def of_database(self, manifest: Manifest, database: str) -> DatabaseCursor | None:
        """Return the cursor of a database of the agent that made the upload."""
        return self.databases.get(_key(manifest, database))

    def at(self, manifest: Manifest, databases: Iterable[str]) -> Self:
        """Return the cursor after the rows of these databases in the upload have been offered."""
        new = {_key(manifest, each): DatabaseCursor(manifest.upload_id, state_of(manifest, each)) for each in databases}
        return replace(self, databases={**self.databases, **new})

    def past(self, upload: str) -> Self:
        """Return the cursor after the upload is finished. It never moves back."""
        return replace(self, through=max(self.through or "", upload))

    def without(self, databases: Iterable[str]) -> Self:
        """Return the cursor without these databases of any agent."""
        removed = set(databases)
        return replace(self, databases={k: c for k, c in self.databases.items() if k.partition("/")[2] not in removed})

    def encode(self) -> str:
        """Return the cursor as JSON for the ledger."""
        databases = {key: [cursor.upload, cursor.state] for key, cursor in self.databases.items()}
        return json.dumps({"through": self.through, "places": databases})

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the cursor that `encode` encoded. Raises WireError."""
        try:
            document = parse_json(text)
            databases = {
                str(key): DatabaseCursor(str(upload), str(state)) for key, (upload, state) in document["places"].items()
            }
            through = None if document["through"] is None else str(document["through"])
            return cls(through, databases)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WireError(f"not a cursor: {error}") from error


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read for each database: `unchanged` nothing, `delta` the upload's memories, `full` the database."""

    unchanged: frozenset[str]
    delta: frozenset[str]
    full: frozenset[str]


def plan(manifest: Manifest, cursor: Cursor) -> Plan:
    """Sort the databases of an upload by what Akosha lacks of them."""
    bases = manifest.memories.bases if manifest.memories else {}
    unchanged, delta, full = set(), set(), set()
    for database in {part.database for part in manifest.parts} | bases.keys():
        done, state = cursor.of_database(manifest, database), state_of(manifest, database)
        if done and (done.upload >= manifest.upload_id or (state and state == done.state)):
            unchanged.add(database)
        elif database in bases and _has_base(done, bases[database]):
            delta.add(database)
        else:
            full.add(database)
    return Plan(frozenset(unchanged), frozenset(delta), frozenset(full))


def advance_unchanged(manifest: Manifest, cursor: Cursor, unchanged: frozenset[str]) -> Cursor:
    """Return the cursor moved to this upload for its `unchanged` databases that later deltas may be based on."""
    bases = unchanged & manifest.base_of
    older = {each for each in bases if _upload(cursor.of_database(manifest, each)) < manifest.upload_id}
    return cursor.at(manifest, older)


def state_of(manifest: Manifest, database: str) -> str:
    """Return a digest of the files of a database, "" if the upload has none."""
    digests = manifest.digests({database})
    listing = "".join(f"{digests[name]} {name}\n" for name in sorted(digests))
    return hashlib.sha256(listing.encode()).hexdigest()[:32] if digests else ""


def _has_base(cursor: DatabaseCursor | None, base: str | None) -> bool:
    return base is None or (cursor is not None and base <= cursor.upload)


def _upload(cursor: DatabaseCursor | None) -> str:
    return cursor.upload if cursor else ""


def _key(manifest: Manifest, database: str) -> str:
    return f"{manifest.agent_id[:16]}/{database}"
