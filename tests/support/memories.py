"""Creates memories in one line, for tests of their processing."""

import functools
import json
import random

from agent.domain.memories import EMBEDDING_LENGTH, Json, Kind, Memory, RowState
from tests.support.values import sha256

CREATED = "2026-03-01T12:00:00.123456+01:00"
DATABASES: dict[Kind, str] = {
    "conversation": "reflection",
    "reflection": "reflection",
    "entity": "knowledge_graph",
    "relationship": "knowledge_graph",
}

_EXTRAS: dict[Kind, dict[str, Json]] = {
    "conversation": {"project": "akosha", "session_id": "s1"},
    "reflection": {"project": "akosha", "category": "insight", "tags": ["a", "b"]},
    "entity": {"name": "DuckDB", "entity_type": "tool", "observations": ["is fast"], "graph": "knowledge_graph"},
    "relationship": {"from_entity": "e1", "to_entity": "e2", "relation_type": "uses", "graph": "knowledge_graph"},
}


@functools.cache
def embedding(seed: object = 0) -> str:
    """Return an embedding as JSON: 384 numbers that depend on the seed only."""
    numbers = random.Random(repr(seed))
    return json.dumps([round(numbers.uniform(-1, 1), 7) for _ in range(EMBEDDING_LENGTH)], separators=(",", ":"))


def seen(number: object = 1, *, kind: Kind = "conversation", state: object = 0, embedded: bool = True) -> RowState:
    """Return the nth row of its kind; another `state` has another digest."""
    identity = f"{kind}-{number}"
    digest = sha256(f"{identity} {state} {embedded}")[:32]
    return RowState(database=DATABASES[kind], kind=kind, id=identity, digest=digest, embedded=embedded)


def memory(
    number: object = 1,
    *,
    kind: Kind = "conversation",
    state: object = 0,
    embedded: bool = True,
    text: str | None = None,
    created_at: str | None = CREATED,
    **metadata: Json,
) -> Memory:
    """Return the nth memory of its kind. `metadata` is added to the usual metadata of its kind."""
    row = seen(number, kind=kind, state=state, embedded=embedded)
    return Memory(
        row=row,
        text=f"What {row.id} says in state {state}." if text is None else text,
        embedding=embedding(row.id) if embedded else None,
        created_at=created_at,
        metadata={**_EXTRAS[kind], **metadata},
    )
