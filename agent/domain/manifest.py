"""The manifest of an upload. It is written last, so an upload exists exactly when its manifest does.

It conforms to Akosha's schema for system uploads (`uploaded_at` with offset, 64 hex digits in `checksum`, `compressed`
and `compression_format` both or neither, plain names in `files`). The schema allows additional fields, which the agent
uses.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self, cast

from agent.domain import naming
from agent.domain.databases import CONVERSATION_TABLES, storage_note
from agent.domain.errors import WireError
from agent.domain.parsing import LARGEST_NUMBER, aware_time, expect, is_unicode, parse_json
from agent.domain.upload_parts import MemoriesPart, ObjectRecord, Part, check_databases, part_keys

VERSION = "1.0"
SYSTEM_TYPE = "session-buddy"
MAX_CONVERSATIONS = 1_000_000
MAX_TOTAL_BYTES = 100_000_000_000
"""Maxima of Akosha's schema. The numbers in the manifest are capped there; uploads may be larger."""

Rows = Mapping[str, int]

_IDS = ("request_id", "agent_id", "triggered_by")


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
        check_databases(self.memories_omitted)
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
            expect(document, str, "system_id", "upload_id", "uploaded_at", "request_id", "agent_id", "triggered_by")
            expect(document, list, "parts")
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


def _counts(tables: Mapping[str, object]) -> Rows:
    expect(tables, int, *tables)
    return cast("Rows", dict(tables))
