"""The demo's databases: those tables of Session-Buddy's that matter, and what holds in every state they are ever in."""

from collections.abc import Mapping
from dataclasses import dataclass

REFLECTION = "reflection.duckdb"
GRAPH = "knowledge_graph.duckdb"

CONVERSATIONS = "conversations_v2"
REFLECTIONS = "reflections_v2"
ENTITIES = "kg_entities"
RELATIONSHIPS = "kg_relationships"

TABLES: Mapping[str, tuple[str, ...]] = {
    REFLECTION: (CONVERSATIONS, REFLECTIONS),
    GRAPH: (ENTITIES, RELATIONSHIPS),
}

STORAGE_VERSION = "v1.0.0"
"""The file format that Session-Buddy's DuckDB writes."""

CONVERSATIONS_PER_REFLECTION = 4
"""A commit adds reflections and four times as many conversations, so half a commit shows."""

ENTITIES_PER_OPERATION, RELATIONSHIPS_PER_OPERATION = 6, 10
"""What one operation adds to the graph, in one transaction."""

DDL: Mapping[str, tuple[str, ...]] = {
    REFLECTION: (
        """CREATE TABLE conversations_v2(
            id VARCHAR PRIMARY KEY, content VARCHAR NOT NULL, embedding FLOAT[384], category VARCHAR NOT NULL,
            subcategory VARCHAR, importance_score FLOAT DEFAULT 0.5, memory_tier VARCHAR DEFAULT 'long_term',
            access_count INTEGER DEFAULT 0, last_accessed TIMESTAMP, project VARCHAR,
            namespace VARCHAR DEFAULT 'default', "timestamp" TIMESTAMP, session_id VARCHAR,
            user_id VARCHAR DEFAULT 'default', searchable_content VARCHAR, reasoning VARCHAR, metadata VARCHAR,
            source_type VARCHAR, turn_parent_id VARCHAR, causal_parent_id VARCHAR, fingerprint BLOB)""",
        """CREATE TABLE reflections_v2(
            id VARCHAR PRIMARY KEY, conversation_id VARCHAR REFERENCES conversations_v2(id), content VARCHAR NOT NULL,
            embedding FLOAT[384], category VARCHAR DEFAULT 'context', subcategory VARCHAR,
            importance_score FLOAT DEFAULT 0.5, memory_tier VARCHAR DEFAULT 'long_term', tags VARCHAR[],
            related_entities VARCHAR[], namespace VARCHAR DEFAULT 'default', project VARCHAR,
            access_count INTEGER DEFAULT 0, last_accessed TIMESTAMP, "timestamp" TIMESTAMP, created_at TIMESTAMP,
            updated_at TIMESTAMP, metadata JSON, insight_type VARCHAR DEFAULT 'general', usage_count INTEGER DEFAULT 0,
            last_used_at TIMESTAMP, confidence_score FLOAT DEFAULT 0.5, fingerprint BLOB)""",
    ),
    GRAPH: (
        """CREATE TABLE kg_entities(
            id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, entity_type VARCHAR NOT NULL, observations VARCHAR[],
            properties JSON, created_at TIMESTAMP, updated_at TIMESTAMP, metadata JSON, embedding FLOAT[384])""",
        """CREATE TABLE kg_relationships(
            id VARCHAR PRIMARY KEY, from_entity VARCHAR NOT NULL, to_entity VARCHAR NOT NULL,
            relation_type VARCHAR NOT NULL, properties JSON, created_at TIMESTAMP, updated_at TIMESTAMP,
            metadata JSON)""",
    ),
}


@dataclass(frozen=True, slots=True)
class Content:
    """What a table holds: how many rows, and a digest of all their values (in no order, by DuckDB's `hash`)."""

    rows: int
    digest: str


Tally = Mapping[str, Content]
"""Table -> what it holds."""


def digest_query(table: str) -> str:
    """Return the SQL that gives a table's rows and digest."""
    return f'SELECT count(*), CAST(coalesce(bit_xor(hash("whole row")), 0) AS VARCHAR) FROM {table} AS "whole row"'  # noqa: S608 - the names above


def halves(rows: Mapping[str, int]) -> list[str]:
    """Return what tells that somebody saw half a transaction; nothing where all is whole."""
    found = []
    if rows[CONVERSATIONS] != CONVERSATIONS_PER_REFLECTION * rows[REFLECTIONS]:
        found.append(f"{rows[CONVERSATIONS]} conversations with {rows[REFLECTIONS]} reflections")
    if rows[ENTITIES] * RELATIONSHIPS_PER_OPERATION != rows[RELATIONSHIPS] * ENTITIES_PER_OPERATION:
        found.append(f"{rows[ENTITIES]} entities with {rows[RELATIONSHIPS]} relationships")
    return found
