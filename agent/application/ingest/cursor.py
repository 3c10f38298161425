"""How far the Akosha side has come with one system, and what follows from it for the next upload.

A database's rows are in Akosha up to the upload that is its place. A delta that begins there, or earlier, has all that
is lacking; who lacks its beginning reads the database itself. Two agents may share a system id: each database of each
has a place of its own.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from agent.domain.errors import WireError
from agent.domain.manifest import Manifest


@dataclass(frozen=True, slots=True)
class DatabaseCursor:
    """All rows of a database, as they were in `upload`, were offered to Akosha. `state` is a digest of its files."""

    upload: str
    state: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """`through`: the last upload that is done with, taken or refused. `places` are by `agent/database`.

    `unpublished` are the ids of events in the ledger that no bus has confirmed yet.
    """

    through: str | None = None
    places: Mapping[str, DatabaseCursor] = field(default_factory=dict)
    unpublished: tuple[str, ...] = ()

    def database_cursor(self, manifest: Manifest, database: str) -> DatabaseCursor | None:
        """Return the place of a database of the agent that made the upload."""
        return self.places.get(_name(manifest, database))

    def at(self, manifest: Manifest, databases: Iterable[str]) -> Self:
        """Return the position when the rows of these databases, as they are in the upload, have been offered."""
        new = {
            _name(manifest, each): DatabaseCursor(manifest.upload_id, state_of(manifest, each)) for each in databases
        }
        return replace(self, places={**self.places, **new})

    def past(self, upload: str) -> Self:
        """Return the position when the upload is done with; it never goes back."""
        return replace(self, through=max(self.through or "", upload))

    def without(self, databases: Iterable[str]) -> Self:
        """Return the position that knows nothing of these databases, whosever they are."""
        gone = set(databases)
        return replace(self, places={n: p for n, p in self.places.items() if n.partition("/")[2] not in gone})

    def encode(self) -> str:
        """Return the position as the ledger keeps it."""
        places = {
            name: [database_cursor.upload, database_cursor.state] for name, database_cursor in self.places.items()
        }
        return json.dumps({"through": self.through, "places": places, "untold": self.unpublished})

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the position that `encode` made. Raises WireError."""
        try:
            kept = json.loads(text)
            places = {
                str(name): DatabaseCursor(str(upload), str(state)) for name, (upload, state) in kept["places"].items()
            }
            through = None if kept["through"] is None else str(kept["through"])
            return cls(through, places, tuple(map(str, kept["untold"])))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WireError(f"not a position: {error}") from error


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with an upload's databases: `same` (nothing), `delta` (its memories have what is new), `whole`."""

    same: frozenset[str]
    delta: frozenset[str]
    whole: frozenset[str]


def plan(manifest: Manifest, position: Cursor) -> Plan:
    """Sort the databases of an upload by what Akosha lacks of them."""
    bases = manifest.memories.bases if manifest.memories else {}
    same, delta, whole = set(), set(), set()
    for database in {part.database for part in manifest.parts} | bases.keys():
        cursor, state = position.database_cursor(manifest, database), state_of(manifest, database)
        if cursor and (cursor.upload >= manifest.upload_id or (state and state == cursor.state)):
            same.add(database)
        elif database in bases and _begins_there(bases[database], cursor):
            delta.add(database)
        else:
            whole.add(database)
    return Plan(frozenset(same), frozenset(delta), frozenset(whole))


def passed(manifest: Manifest, position: Cursor, same: Iterable[str]) -> Cursor:
    """Return the position behind an upload whose `same` databases had nothing new.

    Where it is the beginning of deltas to come, it is the place from now on.
    """
    bases = manifest.memories.bases if manifest.memories else {}
    older = {
        each
        for each in same
        if each in bases and _upload(position.database_cursor(manifest, each)) < manifest.upload_id
    }
    return position.at(manifest, older)


def state_of(manifest: Manifest, database: str) -> str:
    """Return a digest of the files of a database; empty where the upload has none of it."""
    digests = manifest.digests({database})
    listing = "".join(f"{digests[name]} {name}\n" for name in sorted(digests))
    return hashlib.sha256(listing.encode()).hexdigest()[:32] if digests else ""


def _begins_there(base: str | None, cursor: DatabaseCursor | None) -> bool:
    return base is None or (cursor is not None and base <= cursor.upload)


def _upload(cursor: DatabaseCursor | None) -> str:
    return cursor.upload if cursor else ""


def _name(manifest: Manifest, database: str) -> str:
    return f"{manifest.agent_id[:16]}/{database}"
