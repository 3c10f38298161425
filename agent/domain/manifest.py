"""The manifest of an upload. It is written last, so an upload exists exactly when its manifest does.

It conforms to Akosha's schema for system uploads (`uploaded_at` with offset, 64 hex digits in `checksum`, `compressed`
and `compression_format` both or neither, plain names in `files`). The schema allows additional fields, which the agent
uses.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Literal, Self, cast, get_args

from agent.domain import naming
from agent.domain.databases import CONVERSATION_TABLES, database_of, main_name, storage_note
from agent.domain.errors import NamingError, WireError
from agent.domain.parsing import aware_time, is_unicode, parse_json

VERSION = "1.0"
SYSTEM_TYPE = "session-buddy"
MAX_CONVERSATIONS = 1_000_000
LONGEST_NAME_BYTES = 255
MAX_TOTAL_BYTES = 100_000_000_000
"""Maxima of Akosha's schema. The numbers in the manifest are capped there; uploads may be larger."""
LARGEST_NUMBER = 2**63 - 1
"""The largest number that the ledger and JSON readers accept."""

Compression = Literal["gzip", "none"]
Origin = Literal["sent", "copied", "carried"]
Rows = Mapping[str, int]

_IDS = ("request_id", "agent_id", "triggered_by")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of a database, stored as an object in the bucket.

    `name` is the file's name in the data directory; `sha256` and `raw_size` are those of the uncompressed file,
    `stored_size` is the object's size. `origin`: `sent` by the agent; `copied` by the store from the upload before,
    because the file is unchanged; or `carried` over from it, because the database could not be copied this time or was
    not requested (then `carried_from` is the upload that sent this state of the database). `verified` is false if
    DuckDB did not open the snapshot and read all of it; `unverified_reason` says why. `header_iteration` counts the
    main file's checkpoints; `storage_version` is its format, None in uploads of earlier versions. `etag` is the store's
    ETag of this object, as in `StoredObject`; empty if the version that wrote the manifest did not record it.
    """

    database: str
    name: str
    key: str
    raw_size: int
    stored_size: int
    sha256: str
    compression: Compression
    origin: Origin
    verified: bool
    unverified_reason: str = ""
    header_iteration: int | None = None
    carried_from: str | None = None
    storage_version: int | None = None
    etag: str = ""

    def __post_init__(self) -> None:
        if self.raw_size < 0 or self.stored_size < 0:
            raise WireError(f"part {self.name!r}: a size is negative")
        if not _SHA256.fullmatch(self.sha256):
            raise WireError(f"part {self.name!r}: {self.sha256!r} is not a SHA-256")
        # A restore uses the name as a path, so only file names of the database are valid.
        if database_of(self.name) != self.database:
            raise WireError(f"part {self.name!r} is not a file of database {self.database!r}")
        if len(self.name.encode()) > LONGEST_NAME_BYTES:
            raise WireError(f"part {self.name[:80]!r}... has a name that is too long for a file")
        if self.compression not in get_args(Compression) or self.origin not in get_args(Origin):
            raise WireError(
                f"part {self.name!r}: {self.compression!r} or {self.origin!r} is unknown", hint="update akosha-agent"
            )
        if self.carried_from is not None:
            naming.upload_time(self.carried_from)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the object, with which it can be decoded without the manifest."""
        return {"sha256": self.sha256, "size": str(self.raw_size), "compression": self.compression}

    def to_document(self) -> dict[str, object]:
        """Return the part as JSON types."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Self:
        """Return the part in a JSON object. Unknown fields are ignored. Raises WireError."""
        try:
            known = {name: document[name] for name in cls.__dataclass_fields__ if name in document}
            _expect(known, str, "database", "name", "key", "sha256", "compression", "origin")
            _expect(known, int, "raw_size", "stored_size")
            _expect({"unverified_reason": "", "etag": "", **known}, str, "unverified_reason", "etag")
            _expect_optional(known, int, "header_iteration")
            _expect_optional(known, int, "storage_version")
            _expect_optional(known, str, "carried_from")
            if not isinstance(known["verified"], bool):
                raise TypeError("verified is not bool")
            return cls(**known)  # type: ignore[arg-type] # checked by the two lines above and __post_init__
        except (KeyError, TypeError, NamingError) as error:
            raise WireError(f"a part is incomplete: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoriesPart:
    """The upload's memories.json, or memories.json.gz: `count` memories that are new or changed since each base.

    `bases` maps the databases whose memories it has to their base: the upload that the memories are a change to, or
    None if all of them are here. A reader that lacks a base reads the database instead. `raw_size` and `sha256` are
    those of the uncompressed JSON, `stored_size` is the object's size. `etag` is as in `Part`.
    """

    key: str
    raw_size: int
    stored_size: int
    sha256: str
    compression: Compression
    count: int
    bases: Mapping[str, str | None]
    etag: str = ""

    def __post_init__(self) -> None:
        if self.raw_size < 0 or self.stored_size < 0 or self.count < 0:
            raise WireError("memories: a size or count is negative")
        if self.compression not in ("gzip", "none"):
            raise WireError(f"memories: {self.compression!r} is unknown", hint="update akosha-agent")
        if not _SHA256.fullmatch(self.sha256):
            raise WireError(f"memories: {self.sha256!r} is not a SHA-256")
        _check_databases(self.bases)
        for base in self.bases.values():
            if base is not None:
                naming.upload_time(base)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the object, with which it can be decoded without the manifest."""
        return {"sha256": self.sha256, "size": str(self.raw_size), "compression": self.compression}

    def to_document(self) -> dict[str, object]:
        """Return the part as JSON types. `raw_size` is named `size`, as earlier versions read it."""
        document = asdict(self)
        document["size"] = document.pop("raw_size")
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Self:
        """Return the part in a JSON object. Unknown fields are ignored. Raises WireError.

        Manifests of earlier versions have no `stored_size` and `compression`: their memories are not compressed.
        """
        try:
            size = document["size"]
            known = {"etag": "", "compression": "none", "stored_size": size, **document, "raw_size": size}
            known = {name: known[name] for name in cls.__dataclass_fields__}
            _expect(known, str, "key", "sha256", "compression", "etag")
            _expect(known, int, "raw_size", "stored_size", "count")
            _expect(known, dict, "bases")
            _expect_optional_texts(cast("Mapping[str, object]", known["bases"]))
            return cls(**known)  # type: ignore[arg-type] # checked by the lines above and __post_init__
        except (KeyError, TypeError, NamingError) as error:
            raise WireError(f"memories are incomplete: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A complete upload. The constructor checks that every key is below the upload's prefix.

    `memories` describes memories.json, None if the upload has none. Databases that it does not have:
    `without_memories` maps those whose rows could not be read to the reason; `memories_omitted` maps those whose rows
    were left out, because there is no base upload or most of them are new, to the reason. A reader reads these
    databases instead. `time_zone` is the zone of the naive times in the databases: an IANA name, or an
    offset such as +02:00; empty if unknown.

    `rows` counts the rows per database and table of verified databases. `bytes_sent` and `duration_seconds` are those
    of the result, so that the result can be created again from the manifest alone.
    """

    system_id: str
    upload_id: str
    uploaded_at: datetime
    request_id: str
    agent_id: str
    triggered_by: str
    parts: tuple[Part, ...]
    rows: Mapping[str, Rows] = field(default_factory=dict)
    incomplete: Mapping[str, str] = field(default_factory=dict)
    bytes_sent: int = 0
    duration_seconds: float = 0.0
    agent_version: str = ""
    memories: MemoriesPart | None = None
    without_memories: Mapping[str, str] = field(default_factory=dict)
    memories_omitted: Mapping[str, str] = field(default_factory=dict)
    time_zone: str = ""

    def __post_init__(self) -> None:
        naming.check_system_id(self.system_id)
        naming.upload_time(self.upload_id)
        if self.uploaded_at.tzinfo is None:
            raise WireError(f"manifest of {self.upload_id}: uploaded_at has no offset")
        for name in _IDS:  # they are sent in events and stored in the ledger
            if not is_unicode(getattr(self, name)):
                raise WireError(f"manifest of {self.upload_id}: {name} is not Unicode")
        if not 0 <= self.bytes_sent <= LARGEST_NUMBER or not 0 <= self.duration_seconds < math.inf:
            raise WireError(f"manifest of {self.upload_id}: bytes_sent or duration_seconds is impossible")
        for part in self.parts:
            expected = naming.object_key(self.system_id, self.upload_id, naming.object_name(part.name))
            if part.key != expected:
                raise WireError(f"manifest of {self.upload_id}: {part.key!r} is not the key of {part.name!r}")
        if len({part.key for part in self.parts}) < len(self.parts):
            raise WireError(f"manifest of {self.upload_id}: two parts have the same key")
        _check_databases(self.memories_omitted)
        if memories := self.memories:
            gzipped = memories.compression == "gzip"
            if memories.key != naming.memories_key(self.system_id, self.upload_id, gzipped=gzipped):
                raise WireError(f"manifest of {self.upload_id}: {memories.key!r} is not the key of its memories")
            if both := sorted(memories.bases.keys() & self.memories_omitted.keys()):
                raise WireError(f"manifest of {self.upload_id}: the memories of {both[0]!r} are there and omitted")

    @property
    def key(self) -> str:
        """The key of the manifest."""
        return naming.manifest_key(self.system_id, self.upload_id)

    @property
    def objects(self) -> tuple[Part | MemoriesPart, ...]:
        """All objects of the upload, without the manifest."""
        return (*self.parts, *((self.memories,) if self.memories else ()))

    @property
    def stored_bytes(self) -> int:
        """Total size of the upload's objects in bytes, without the manifest."""
        return sum(each.stored_size for each in self.objects)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all objects of the upload, without the manifest."""
        return tuple(each.key for each in self.objects)

    @property
    def base_of(self) -> frozenset[str]:
        """The databases that this upload can be the base of: with its bases, it has all their rows."""
        return frozenset(self.memories_omitted) | frozenset(self.memories.bases if self.memories else ())

    @property
    def conversation_count(self) -> int:
        """The number of memories, or of conversations in the databases if there is no memories.json. Up to a limit."""
        if self.memories:
            return min(self.memories.count, MAX_CONVERSATIONS)
        counts = (
            next((tables[name] for name in CONVERSATION_TABLES if name in tables), 0) for tables in self.rows.values()
        )
        return min(sum(counts), MAX_CONVERSATIONS)

    def of(self, database: str) -> tuple[Part, ...]:
        """Return the parts of one database."""
        return tuple(part for part in self.parts if part.database == database)

    def storage_notes(self) -> dict[str, str]:
        """Return database -> note, for databases that some DuckDB that Session-Buddy supports cannot open."""
        found = {part.database: storage_note(part.storage_version) for part in self.parts if part.storage_version}
        return {database: note for database, note in sorted(found.items()) if note}

    def digests(self, databases: Iterable[str]) -> dict[str, str]:
        """Return file name -> SHA-256 of the uncompressed file, for these databases."""
        wanted = set(databases)
        return {part.name: part.sha256 for part in self.parts if part.database in wanted}

    def encode(self) -> bytes:
        """Return the manifest as indented JSON, for Akosha and for people."""
        gzipped = any(each.compression == "gzip" for each in self.objects)
        listing = "".join(f"{each.sha256}  {each.key}\n" for each in sorted(self.objects, key=lambda each: each.key))
        document = {
            "version": VERSION,
            "system_id": self.system_id,
            "system_type": SYSTEM_TYPE,
            "upload_id": self.upload_id,
            "uploaded_at": self.uploaded_at.isoformat(),
            "timestamp": self.uploaded_at.isoformat(),
            "conversation_count": self.conversation_count,
            "total_size_bytes": min(self.stored_bytes, MAX_TOTAL_BYTES),
            "checksum": hashlib.sha256(listing.encode()).hexdigest(),
            "files": [key.rpartition("/")[2] for key in self.keys],
            "metadata": {"rows": {name: dict(tables) for name, tables in self.rows.items()}},
            "parts": [part.to_document() for part in self.parts],
            "memories": self.memories.to_document() if self.memories else None,
            "without_memories": dict(self.without_memories),
            "memories_omitted": dict(self.memories_omitted),
            "time_zone": self.time_zone,
            "incomplete": dict(self.incomplete),
            "request_id": self.request_id,
            "agent_id": self.agent_id,
            "agent_version": self.agent_version,
            "triggered_by": self.triggered_by,
            "bytes_sent": self.bytes_sent,
            "duration_seconds": self.duration_seconds,
        }
        if gzipped:
            document |= {"compressed": True, "compression_format": "gzip"}
        # A reason may contain a path with bytes that are not UTF-8; they are escaped.
        return json.dumps(document, indent=1, ensure_ascii=False).encode(errors="backslashreplace")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the manifest in these bytes. Unknown fields are ignored. Raises WireError."""
        try:
            document = parse_json(data)
            _expect(document, str, "system_id", "upload_id", "uploaded_at", "request_id", "agent_id", "triggered_by")
            _expect(document, list, "parts")
            metadata = document.get("metadata") or {}
            return cls(
                system_id=document["system_id"],
                upload_id=document["upload_id"],
                uploaded_at=aware_time(document["uploaded_at"]),
                request_id=document["request_id"],
                agent_id=document["agent_id"],
                triggered_by=document["triggered_by"],
                parts=tuple(Part.from_document(part) for part in document["parts"]),
                rows={str(name): _counts(tables) for name, tables in (metadata.get("rows") or {}).items()},
                incomplete={str(n): str(text) for n, text in (document.get("incomplete") or {}).items()},
                bytes_sent=int(document.get("bytes_sent", 0)),
                duration_seconds=float(document.get("duration_seconds", 0.0)),
                agent_version=str(document.get("agent_version", "")),
                memories=None if (part := document.get("memories")) is None else MemoriesPart.from_document(part),
                without_memories={str(n): str(text) for n, text in (document.get("without_memories") or {}).items()},
                memories_omitted={str(n): str(text) for n, text in (document.get("memories_omitted") or {}).items()},
                time_zone=str(document.get("time_zone", "")),
            )
        except WireError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise WireError(f"not a manifest of akosha-agent: {error}") from error


def manifest_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of an encoded manifest's object."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": str(len(data)), "compression": "none"}


def relocate(part: Part, *, system_id: str, upload: str, origin: Origin, carried_from: str | None) -> Part:
    """Return the part of another upload with the same bytes. The `etag` of its object is not known yet."""
    key = naming.object_key(system_id, upload, naming.object_name(part.name))
    return replace(part, key=key, origin=origin, carried_from=carried_from, etag="")


def _check_databases(names: Iterable[str]) -> None:
    for name in names:
        if database_of(main_name(name)) != name:
            raise WireError(f"memories: {name!r} is not a database")


def _counts(tables: Mapping[str, object]) -> Rows:
    _expect(tables, int, *tables)
    return cast("Rows", dict(tables))


def _expect(document: Mapping[str, object], kind: type, *names: str) -> None:
    """Raise TypeError if a field is not of this type, or a number out of range; KeyError if one is missing."""
    for name in names:
        value = document[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name} is not {kind.__name__}")  # bool is a subclass of int
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise TypeError(f"{name} is out of range")


def _expect_optional(document: Mapping[str, object], kind: type, name: str) -> None:
    """Raise TypeError if the field exists, is not null, and is not of this type."""
    if document.get(name) is not None:
        _expect(document, kind, name)


def _expect_optional_texts(document: Mapping[str, object]) -> None:
    """Raise TypeError unless every field is a string or null."""
    for name in document:
        _expect_optional(document, str, name)
