"""Convert a row to the text, metadata and time that are sent to Akosha, and their digest.

Only stable columns are sent: not access counters, importance, tier or `updated_at`, which reading or decay change.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import NoReturn

import orjson

from agent.domain.memories import Json, Kind

Values = Mapping[str, str]
"""A row: column name in lower case -> value. Lists are JSON. NULL and empty values, and missing columns, are absent."""

_DEFAULT_NAMESPACE = "default"
_DIGEST_DIGITS = 32
_DEEPEST = 64
_INTEGERS = range(-(2**63), 2**64)
"""The integers that JSON readers can be expected to support."""

TIMES: Mapping[Kind, tuple[str, ...]] = {
    "conversation": ("timestamp",),
    "reflection": ("created_at", "timestamp"),
    "entity": ("created_at",),
    "relationship": ("created_at",),
}
"""The columns of the time; the first that has a value is used."""

_encoded = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The content of a row except its embedding. `time` is the time in the row, ISO 8601, with or without offset."""

    kind: Kind
    id: str
    text: str
    metadata: dict[str, Json]
    time: str | None


def row_of(kind: Kind, values: Values, *, graph: str = "", names: Mapping[str, str] | None = None) -> Row | None:
    """Return the content of a row, None if it has no ID or no text.

    `graph` is the name of the knowledge graph, if it has one; `names` maps entity IDs to names.
    """
    row_id = values.get("id", "")
    if not row_id.strip():
        return None
    text, metadata = _CONTENT[kind](values, names or {})
    if not text.strip():
        return None
    if graph and kind in ("entity", "relationship"):
        metadata["graph"] = graph
    present: dict[str, Json] = {name: value for name, value in metadata.items() if value}
    return Row(kind=kind, id=row_id, text=text, metadata=present, time=_time(values, *TIMES[kind]))


def digest(row: Row, *, embedded: bool) -> str:
    r"""Return the digest of `RowState`: the first 32 hex digits of the SHA-256 of the row's canonical JSON.

    The JSON is an object with `embedded`, `id`, `kind`, `metadata`, `text` and `time`, as Python's `json.dumps` writes
    it: keys sorted at every level, no blanks, only `"`, `\` and control characters escaped, in UTF-8. The digest is
    part of a memory's ID in Akosha, so neither its computation nor its input may ever change.
    """
    document: dict[str, Json] = {
        "embedded": embedded,
        "id": row.id,
        "kind": row.kind,
        "metadata": row.metadata,
        "text": row.text,
        "time": row.time,
    }
    # orjson is ten times as fast, and writes the same except for numbers: only properties can contain numbers.
    exact = "properties" in row.metadata
    canonical = _encoded(document).encode() if exact else orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:_DIGEST_DIGITS]


def instant(time: str | None, zone: tzinfo) -> str | None:
    """Return the time with an offset, None if it is not a time, infinite, or in a year that ISO 8601 does not have.

    A naive time is in `zone`. If the clock was set back then, it is the earlier of the two possible times; if it was
    set forward, the time without that change (`fold=0`). A time with an offset is converted to UTC.
    """
    if time is None:
        return None
    try:
        at = datetime.fromisoformat(time)
        if at.tzinfo is None:
            at = at.replace(tzinfo=zone)
            offset = at.utcoffset()
            if offset is not None and offset.total_seconds() % 60 == 0:
                return at.isoformat()
        return at.astimezone(
            UTC
        ).isoformat()  # it has an offset, or that of the zone has seconds: from before time zones
    except (ValueError, OverflowError):
        return None


def json_or_text(text: str) -> Json:
    """Return the value of a JSON text; the text itself if it is not JSON, or not all readers support its values."""
    if not text or text in ("{}", "null"):
        return None
    try:
        value: Json = json.loads(text, parse_constant=_refuse)
        _check(value, _DEEPEST)
    except (ValueError, RecursionError):
        return text
    return value


# ----------------------------------------------------------------------------------------------------------- content


def _conversation(values: Values, _names: Mapping[str, str]) -> tuple[str, dict[str, Json]]:
    namespace = values.get("namespace", "")
    return values.get("content", ""), {
        "project": values.get("project", ""),
        "session_id": values.get("session_id", ""),
        "category": values.get("category", ""),
        "namespace": "" if namespace == _DEFAULT_NAMESPACE else namespace,
        "source_type": values.get("source_type", ""),
    }


def _reflection(values: Values, _names: Mapping[str, str]) -> tuple[str, dict[str, Json]]:
    return values.get("content", ""), {
        "project": values.get("project", ""),
        "category": values.get("category", ""),
        "tags": list[Json](_texts(values, "tags")),
        "conversation_id": values.get("conversation_id", ""),
        "insight_type": values.get("insight_type", ""),
    }


def _entity(values: Values, _names: Mapping[str, str]) -> tuple[str, dict[str, Json]]:
    name, entity_type = values.get("name", "").strip(), values.get("entity_type", "").strip()
    observations = _texts(values, "observations")
    lines = [f"- {observation}" for observation in observations]
    if name or lines:  # a type alone is not a memory
        head = f"{name} ({entity_type})" if name and entity_type else name or entity_type
        lines = [head, *lines] if head else lines
    return "\n".join(lines), {
        "name": name,
        "entity_type": entity_type,
        "observations": list[Json](observations),
        "properties": json_or_text(values.get("properties", "")),
    }


def _relationship(values: Values, names: Mapping[str, str]) -> tuple[str, dict[str, Json]]:
    start, end, relation = (values.get(name, "") for name in ("from_entity", "to_entity", "relation_type"))
    text = f"{names.get(start, start)} -{relation}-> {names.get(end, end)}" if start.strip() and end.strip() else ""
    return text, {
        "from_entity": start,
        "to_entity": end,
        "relation_type": relation,
        "properties": json_or_text(values.get("properties", "")),
    }


_CONTENT: Mapping[Kind, Callable[[Values, Mapping[str, str]], tuple[str, dict[str, Json]]]] = {
    "conversation": _conversation,
    "reflection": _reflection,
    "entity": _entity,
    "relationship": _relationship,
}


def _texts(values: Values, name: str) -> list[str]:
    """Return the texts of a list that are not blank. A text that is not a JSON list is a list of one."""
    text = values.get(name, "")
    parsed = json_or_text(text)
    items = parsed if isinstance(parsed, list) else [text]
    return [item for item in items if isinstance(item, str) and item.strip()]


def _time(values: Values, *names: str) -> str | None:
    for name in names:
        if text := values.get(name, "").strip():
            return f"{text[:10]}T{text[11:]}" if text[10:11] == " " else text
    return None


# -------------------------------------------------------------------------------------------------------------- JSON


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _check(value: Json, depth: int) -> None:
    """Raise ValueError for values that not all JSON readers support: lone surrogates, numbers beyond 64 bits."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(value)
    elif isinstance(value, int):
        if value not in _INTEGERS:
            raise ValueError(value)
    elif value is not None:
        if not depth:
            raise ValueError("too deep")
        for item in value if isinstance(value, list) else (*value.keys(), *value.values()):
            _check(item, depth - 1)
