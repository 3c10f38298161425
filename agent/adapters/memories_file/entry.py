"""One memory as a line of memories.json, and back.

The embedding stands last and is taken over as it was read, digit by digit. `metadata` is what the row brings along,
and what makes its `Seen`.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar

import orjson

from agent.domain.databases import database_of, main_name
from agent.domain.errors import SnapshotError, WireError
from agent.domain.memories import EMBEDDING_LENGTH, Memory, Seen, check_kind, memory_id

T = TypeVar("T")

_OURS = frozenset({"type", "original_id", "database", "digest"})
_EMBEDDING = b',"embedding":'
_DIGEST = re.compile(r"[0-9a-f]{32}")


def encode(memory: Memory, system_id: str) -> bytes:
    """Return the memory as a line without its end. Raises SnapshotError for what JSON cannot hold."""
    seen = memory.seen
    ours = {"type": seen.kind, "original_id": seen.id, "database": seen.database, "digest": seen.digest}
    entry = {
        "id": memory_id(system_id, seen),
        "content": memory.text,
        **({"timestamp": memory.created_at} if memory.created_at is not None else {}),
        "source": system_id,
        "metadata": {**memory.metadata, **ours},
    }
    try:
        if taken := _OURS & memory.metadata.keys():
            raise ValueError(f"its {', '.join(sorted(taken))} would be lost")
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if memory.embedding is not None:
            line = line[:-1] + _EMBEDDING + memory.embedding.replace("\n", " ").encode("ascii") + b"}"
    except (ValueError, TypeError, RecursionError) as error:
        raise SnapshotError(f"{seen.database}: the {seen.kind} {seen.id} cannot be written: {error}") from error
    return line


def decode(line: bytes, system_id: str) -> Memory:
    """Return the memory in a line. Raises WireError, saying what is wrong with it."""
    head, embedding = _split(line)
    try:
        entry = orjson.loads(head)  # strict: no NaN, no half characters
    except ValueError as error:
        raise WireError(f"it is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise WireError("it is not an object")
    if "embedding" in entry:
        raise WireError("its embedding is not an array at its end")
    metadata = dict(_of(entry, "metadata", dict))
    seen = Seen(
        database=_database(metadata),
        kind=check_kind(_of(metadata, "type", str)),
        id=_of(metadata, "original_id", str),
        digest=_digest(metadata),
        embedded=embedding is not None,
    )
    if _of(entry, "id", str) != memory_id(system_id, seen):
        raise WireError(f"id {entry['id'][:200]!r} is not that of {seen.kind} {seen.id[:100]!r} of {system_id}")
    if _of(entry, "source", str) != system_id:
        raise WireError(f"source {entry['source'][:200]!r} is not {system_id}")
    return Memory(
        seen=seen,
        text=_of(entry, "content", str),
        embedding=embedding,
        created_at=_time(entry),
        metadata={name: value for name, value in metadata.items() if name not in _OURS},
    )


def _split(line: bytes) -> tuple[bytes, str | None]:
    """Return the entry without its embedding, and the embedding as it stands there."""
    before, found, rest = line.rpartition(_EMBEDDING)
    # Without an embedding of its own an entry ends in its metadata: two braces, and never a bracket before one.
    if not found or not (rest.startswith(b"[") and rest.endswith(b"]}")):
        return line, None
    embedding = rest[:-1]
    try:
        numbers = orjson.loads(embedding)  # strict: all of them finite
    except ValueError as error:
        raise WireError(f"its embedding is not JSON: {error}") from error
    if len(numbers) != EMBEDDING_LENGTH or not {*map(type, numbers)} <= {int, float}:
        raise WireError(f"its embedding is not {EMBEDDING_LENGTH} numbers")
    return before + b"}", embedding.decode()


def _of(document: Mapping[str, object], name: str, kind: type[T]) -> T:
    value = document.get(name)
    if not isinstance(value, kind) or value == "":
        raise WireError(f"its {name} is missing, empty or not {kind.__name__}")
    return value


def _database(metadata: Mapping[str, object]) -> str:
    database = _of(metadata, "database", str)
    if database_of(main_name(database)) != database:
        raise WireError(f"{database[:200]!r} is no database")
    return database


def _digest(metadata: Mapping[str, object]) -> str:
    digest = _of(metadata, "digest", str)
    if not _DIGEST.fullmatch(digest):
        raise WireError(f"{digest[:200]!r} is no digest")
    return digest


def _time(entry: Mapping[str, object]) -> str | None:
    if "timestamp" not in entry:
        return None
    text = _of(entry, "timestamp", str)
    try:
        if datetime.fromisoformat(text).tzinfo is not None:
            return text
    except ValueError:
        pass
    raise WireError(f"{text[:100]!r} is no time with an offset")
