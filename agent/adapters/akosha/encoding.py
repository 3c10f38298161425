"""A memory as bytes: one element of what batch_store_memories takes."""

import math
from collections.abc import Mapping

import orjson

from agent.domain.memories import Json, Memory, memory_id
from agent.ports import Packed

_DEEPEST = 64
_LARGEST = 2**63


def pack(memory: Memory, system_id: str) -> Packed:
    """Return the memory as it will be sent. Whatever is in it, this does not fail."""
    seen = memory.seen
    identity = memory_id(system_id, seen)
    metadata: dict[str, Json] = {**memory.metadata, "source": system_id, "original_id": seen.id, "type": seen.kind}
    if memory.created_at is not None:
        metadata["created_at"] = memory.created_at
    sent: dict[str, object] = {"memory_id": identity, "text": memory.text, "metadata": metadata}
    # As it stands: 384 numbers, a thousand times, are most of the work otherwise.
    vector = {} if memory.embedding is None else {"embedding": orjson.Fragment(memory.embedding)}
    try:
        body = orjson.dumps(sent | vector)
    except (TypeError, ValueError):
        body = orjson.dumps({str(name): _plain(value, _DEEPEST) for name, value in sent.items()} | vector)
    return Packed(seen=seen, memory_id=identity, body=body)


def _plain(value: object, depth: int) -> object:
    """Return the value as JSON can hold it: no lone surrogates, no number beyond 64 bits, nothing too deep."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(_plain(str(key), 1)): _plain(inner, depth - 1) for key, inner in value.items()} if depth else None
    if isinstance(value, list | tuple):
        return [_plain(inner, depth - 1) for inner in value] if depth else None
    return value
