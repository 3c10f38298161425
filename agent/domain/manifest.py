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
Patches = Literal["patches (update akosha-agent)"]
PartCompression = Literal["gzip", "none"] | Patches
PATCHES: Patches = "patches (update akosha-agent)"
"""The compression of a file that is stored as a base and patches. Versions that cannot apply patches do not know this
value, and print it in their error. They have no other way to say what helps.
"""
Origin = Literal["sent", "copied", "carried"]
Rows = Mapping[str, int]

_IDS = ("request_id", "agent_id", "triggered_by")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRecord:
    """An object of an upload. `raw_size` and `sha256` are those of its uncompressed content, `stored_size` is its size.

    `etag` is the store's ETag, as in `StoredObject`; empty if the version that wrote the manifest did not record it.
    """

    key: str
    raw_size: int
    stored_size: int
    sha256: str
    compression: Compression
    etag: str = ""

    def __post_init__(self) -> None:
        if self.raw_size < 0 or self.stored_size < 0:
            raise WireError(f"object {self.key!r}: a size is negative")
        if not _SHA256.fullmatch(self.sha256):
            raise WireError(f"object {self.key!r}: {self.sha256!r} is not a SHA-256")
        if self.compression not in get_args(Compression):
            raise WireError(f"object {self.key!r}: {self.compression!r} is unknown", hint="update akosha-agent")

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the object, with which it can be decoded without the manifest."""
        return {"sha256": self.sha256, "size": str(self.raw_size), "compression": self.compression}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer(ObjectRecord):
    """The base of a patched file, or a patch. A patch makes the file of the next state from that of the state before.

    `file_size` and `file_sha256` are those of the file that the base is, or that the patch makes. `upload_id` is the
    first upload that had it as a layer.
    """

    file_size: int
    file_sha256: str
    upload_id: str

    def __post_init__(self) -> None:
        ObjectRecord.__post_init__(self)
        if self.file_size < 0:
            raise WireError(f"object {self.key!r}: a size is negative")
        if not _SHA256.fullmatch(self.file_sha256):
            raise WireError(f"object {self.key!r}: {self.file_sha256!r} is not a SHA-256")
        naming.upload_time(self.upload_id)

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Self:
        """Return the layer in a JSON object. Unknown fields are ignored. Raises WireError."""
        try:
            known = {"etag": "", **document}
            known = {name: known[name] for name in cls.__dataclass_fields__}
            _expect(known, str, "key", "sha256", "compression", "etag", "file_sha256", "upload_id")
            _expect(known, int, "raw_size", "stored_size", "file_size")
            return cls(**known)  # type: ignore[arg-type] # checked by the lines above and __post_init__
        except (KeyError, TypeError, NamingError) as error:
            raise WireError(f"a layer is incomplete: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of a database, stored as an object in the bucket, or as several: a base and patches (`layers`).

    `name` is the file's name in the data directory; `sha256` and `raw_size` are those of the uncompressed file,
    `stored_size` is the size of its objects. `key` is its object, or its base. `origin`: `sent` by the agent, whole or
    as a patch; `copied` by the store from the upload before, because the file is unchanged; or `carried` over from it,
    because the database could not be copied this time or was not requested (then `carried_from` is the upload that sent
    this state of the database). `verified`: before the manifest, DuckDB opened the snapshot and read all of it, or it
    replayed the WAL and counted the rows, and had read all of a copy with the same main file within a day before;
    otherwise `unverified_reason` says why not. `header_iteration` counts the main file's checkpoints; `storage_version`
    is its format, None in uploads of earlier versions. `etag` is the ETag of a single object; layers have their own.
    """

    database: str
    name: str
    key: str
    raw_size: int
    stored_size: int
    sha256: str
    compression: PartCompression
    origin: Origin
    verified: bool
    unverified_reason: str = ""
    header_iteration: int | None = None
    carried_from: str | None = None
    storage_version: int | None = None
    etag: str = ""
    layers: tuple[Layer, ...] = ()

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
        if self.compression not in (*get_args(Compression), PATCHES) or self.origin not in get_args(Origin):
            raise WireError(
                f"part {self.name!r}: {self.compression!r} or {self.origin!r} is unknown", hint="update akosha-agent"
            )
        if self.carried_from is not None:
            naming.upload_time(self.carried_from)
        if len(self.layers) == 1 or (self.compression == PATCHES) != bool(self.layers):
            raise WireError(f"part {self.name!r}: its layers do not match its compression {self.compression!r}")
        if self.layers and not self._matches_layers():
            raise WireError(f"part {self.name!r} is not the file that its layers make")

    @property
    def objects(self) -> tuple[ObjectRecord, ...]:
        """The objects of the file: one, or its layers in the order in which they are applied."""
        if self.compression == PATCHES:
            return self.layers
        return (
            ObjectRecord(
                key=self.key,
                raw_size=self.raw_size,
                stored_size=self.stored_size,
                sha256=self.sha256,
                compression=self.compression,
                etag=self.etag,
            ),
        )

    def with_etags(self, etags: Mapping[str, str]) -> Self:
        """Return the part with the ETags of its objects, by key."""
        if self.layers:
            return replace(self, layers=tuple(replace(layer, etag=etags[layer.key]) for layer in self.layers))
        return replace(self, etag=etags[self.key])

    def to_document(self) -> dict[str, object]:
        """Return the part as JSON types."""
        document = asdict(self)
        if not self.layers:
            del document["layers"]
        return document

    def _matches_layers(self) -> bool:
        base, last = self.layers[0], self.layers[-1]
        return (
            self.key == base.key
            and (base.file_size, base.file_sha256) == (base.raw_size, base.sha256)
            and (self.raw_size, self.sha256) == (last.file_size, last.file_sha256)
            and self.stored_size == sum(layer.stored_size for layer in self.layers)
        )

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
            _expect({"layers": [], **known}, list, "layers")
            layers = cast("list[Mapping[str, object]]", known.get("layers", []))
            known["layers"] = tuple(Layer.from_document(layer) for layer in layers)
            return cls(**known)  # type: ignore[arg-type] # checked by the two lines above and __post_init__
        except (KeyError, TypeError, NamingError) as error:
            raise WireError(f"a part is incomplete: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoriesPart(ObjectRecord):
    """The upload's memories.json, or memories.json.gz: `count` memories that are new or changed since each base.

    `bases` maps the databases whose memories it has to their base: the upload that the memories are a change to, or
    None if all of them are here. A reader that lacks a base reads the database instead.
    """

    count: int
    bases: Mapping[str, str | None]

    def __post_init__(self) -> None:
        ObjectRecord.__post_init__(self)
        if self.count < 0:
            raise WireError("memories: the count is negative")
        _check_databases(self.bases)
        for base in self.bases.values():
            if base is not None:
                naming.upload_time(base)

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
            expected = part_keys(self.system_id, self.upload_id, part.name, layers=len(part.layers))
            for item, key in zip(part.objects, expected, strict=True):
                if item.key != key:
                    raise WireError(f"manifest of {self.upload_id}: {item.key!r} is not the key of {part.name!r}")
        if len({*self.keys}) < len(self.keys):
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
    def objects(self) -> tuple[ObjectRecord, ...]:
        """All objects of the upload, without the manifest."""
        parts = (item for part in self.parts for item in part.objects)
        return (*parts, *((self.memories,) if self.memories else ()))

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


def part_keys(system_id: str, upload: str, name: str, *, layers: int) -> tuple[str, ...]:
    """Return the keys of a file's objects: one, or as many as it has `layers`.

    A base never has the file's own name: a program that does not know patches would take it for the file.
    """
    plain = naming.object_name(name)
    names = [f"{plain}.patch-{number:02}" if number else f"{plain}.base" for number in range(layers)]
    return tuple(naming.object_key(system_id, upload, each) for each in names or [plain])


def relocate(part: Part, *, system_id: str, upload: str, origin: Origin, carried_from: str | None) -> Part:
    """Return the part of another upload with the same bytes. The ETags of its objects are not known yet."""
    keys = part_keys(system_id, upload, part.name, layers=len(part.layers))
    layers = tuple(replace(layer, key=key, etag="") for layer, key in zip(part.layers, keys, strict=False))
    return replace(part, key=keys[0], origin=origin, carried_from=carried_from, etag="", layers=layers)


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
