"""The demo's databases: tables of Session-Buddy that the agent reads, and the ratios that each transaction keeps."""

REFLECTION, GRAPH = "reflection.duckdb", "knowledge_graph.duckdb"
CONVERSATIONS, REFLECTIONS = "conversations_v2", "reflections_v2"
ENTITIES, RELATIONSHIPS = "kg_entities", "kg_relationships"
TABLES = {REFLECTION: (CONVERSATIONS, REFLECTIONS), GRAPH: (ENTITIES, RELATIONSHIPS)}

CONVERSATIONS_PER_REFLECTION = 4
ENTITIES_PER_OPERATION, RELATIONSHIPS_PER_OPERATION = 6, 10
"""Fixed ratios within a transaction: half of one shows."""

Contents = dict[str, tuple[int, str]]
"""Table -> number of rows, and a digest of all their values, in no order, by DuckDB's `hash`."""

DDL = {
    REFLECTION: """
        CREATE TABLE conversations_v2(
            id VARCHAR PRIMARY KEY, content VARCHAR NOT NULL, embedding FLOAT[384], category VARCHAR NOT NULL,
            subcategory VARCHAR, importance_score FLOAT DEFAULT 0.5, memory_tier VARCHAR DEFAULT 'long_term',
            access_count INTEGER DEFAULT 0, last_accessed TIMESTAMP, project VARCHAR,
            namespace VARCHAR DEFAULT 'default', "timestamp" TIMESTAMP, session_id VARCHAR,
            user_id VARCHAR DEFAULT 'default', searchable_content VARCHAR, reasoning VARCHAR, metadata VARCHAR,
            source_type VARCHAR, turn_parent_id VARCHAR, causal_parent_id VARCHAR, fingerprint BLOB);
        CREATE TABLE reflections_v2(
            id VARCHAR PRIMARY KEY, conversation_id VARCHAR REFERENCES conversations_v2(id), content VARCHAR NOT NULL,
            embedding FLOAT[384], category VARCHAR DEFAULT 'context', subcategory VARCHAR,
            importance_score FLOAT DEFAULT 0.5, memory_tier VARCHAR DEFAULT 'long_term', tags VARCHAR[],
            related_entities VARCHAR[], namespace VARCHAR DEFAULT 'default', project VARCHAR,
            access_count INTEGER DEFAULT 0, last_accessed TIMESTAMP, "timestamp" TIMESTAMP, created_at TIMESTAMP,
            updated_at TIMESTAMP, metadata JSON, insight_type VARCHAR DEFAULT 'general', usage_count INTEGER DEFAULT 0,
            last_used_at TIMESTAMP, confidence_score FLOAT DEFAULT 0.5, fingerprint BLOB)""",
    GRAPH: """
        CREATE TABLE kg_entities(
            id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, entity_type VARCHAR NOT NULL, observations VARCHAR[],
            properties JSON, created_at TIMESTAMP, updated_at TIMESTAMP, metadata JSON, embedding FLOAT[384]);
        CREATE TABLE kg_relationships(
            id VARCHAR PRIMARY KEY, from_entity VARCHAR NOT NULL, to_entity VARCHAR NOT NULL,
            relation_type VARCHAR NOT NULL, properties JSON, created_at TIMESTAMP, updated_at TIMESTAMP,
            metadata JSON)""",
}
