"""The demo's DuckDB process: writes memories as Session-Buddy does, or counts those in a directory.

    python -m agent.entrypoints.demo.writer DIR
    python -m agent.entrypoints.demo.writer --count DIR

The writer keeps reflection.duckdb open until it ends, and opens knowledge_graph.duckdb for each operation. It reads one
command per line from standard input, and answers each with a JSON line, `{"text": ..., "commits": N}`:

    commit N      write N reflections and four times as many conversations in one transaction, into the WAL
    graph N       run N operations on the graph in one transaction
    work          commit small transactions until the next line arrives
    close         close both databases, which is a checkpoint, and end; the answer has `contents`

End of input means `close`. Any error ends the writer with a traceback and exit status 1. `--count` prints the contents:
table -> [rows, digest of all their values].
"""

import hashlib
import json
import random
import select
import sys
import uuid
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

REFLECTION, GRAPH = "reflection.duckdb", "knowledge_graph.duckdb"
CONVERSATIONS, REFLECTIONS = "conversations_v2", "reflections_v2"
ENTITIES, RELATIONSHIPS = "kg_entities", "kg_relationships"
TABLES = {REFLECTION: (CONVERSATIONS, REFLECTIONS), GRAPH: (ENTITIES, RELATIONSHIPS)}

BETWEEN_COMMITS_SECONDS = 0.05
CONVERSATIONS_PER_REFLECTION = 4
ENTITIES_PER_OPERATION, RELATIONSHIPS_PER_OPERATION = 6, 10
"""Fixed row ratios within a transaction, so that a partial transaction can be detected."""

Contents = dict[str, tuple[int, str]]
"""Table -> number of rows, and a digest of all values, independent of the order, by DuckDB's `hash`."""

_DDL = {
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
# One conversation in eight has no embedding, as after an outage of Session-Buddy's embedding server.
_ADD_CONVERSATIONS = """
    INSERT INTO conversations_v2 (id, content, embedding, category, project, "timestamp", session_id, source_type)
    SELECT id, content,
        CASE WHEN number % 8 > 0 THEN list_transform(
            range(384), lambda x: (hash(number * 384 + x) % 2000000 / 1000000.0 - 1.0)::FLOAT)::FLOAT[384] END,
        'development', 'akosha', $now::TIMESTAMP, 'demo', 'claude_code'
    FROM (SELECT unnest($ids) AS id, unnest($texts) AS content, unnest($numbers) AS number)
"""
_ADD_REFLECTIONS = """
    INSERT INTO reflections_v2 (id, conversation_id, content, tags, project, "timestamp", created_at, updated_at)
    SELECT id, conversation, content, ['demo'], 'akosha', $now::TIMESTAMP, $now::TIMESTAMP, $now::TIMESTAMP
    FROM (SELECT unnest($ids) AS id, unnest($conversations) AS conversation, unnest($texts) AS content)
"""
_ADD_ENTITY = """
    INSERT INTO kg_entities (id, name, entity_type, observations, properties, created_at, updated_at)
    VALUES ($id, $name, 'concept', [$observation], '{}', $now::TIMESTAMP, $now::TIMESTAMP)
"""
_ADD_RELATIONSHIP = """
    INSERT INTO kg_relationships (id, from_entity, to_entity, relation_type, created_at, updated_at)
    VALUES ($id, $from, $to, 'relates_to', $now::TIMESTAMP, $now::TIMESTAMP)
"""
_ACCESS = "UPDATE conversations_v2 SET access_count = access_count + 1, last_accessed = $now::TIMESTAMP WHERE id = $id"

_WORDS = (
    ("The parser", "A test", "The cache", "The migration", "Our deployment", "The retry", "The index", "The hook"),
    ("failed on", "was slow with", "now handles", "was rewritten for", "had a race in", "is proven on"),
    ("empty input", "time zones", "large files", "names with ümlauts", "a full disk", "two writers", "日本語"),
)


class Writer:
    """One session. It keeps reflection.duckdb open until `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._random = random.Random(7)  # noqa: S311 - generates sentences, not secrets
        self._rows: Counter[str] = Counter()
        self._commits = 0
        self._session = _open(folder / REFLECTION)

    def execute(self, command: str) -> bool:
        """Execute one command and answer it. Return False after `close`."""
        word, _, argument = command.partition(" ")
        before = Counter(self._rows)
        contents: Contents = {}
        if word == "commit":
            self._commit(int(argument))
        elif word == "graph":
            self._graph(int(argument))
        elif word == "work":
            while not select.select([sys.stdin], [], [], BETWEEN_COMMITS_SECONDS)[0]:
                self._commit(1)
        elif word == "close":
            contents = self._close()
        else:
            raise ValueError(f"unknown command {command!r}")
        new = ", ".join(f"{count} rows in {table}" for table, count in (self._rows - before).items())
        text = f"committed {new}" if new else "closed reflection.duckdb: the session is over"
        _answer({"text": text, "commits": self._commits, "contents": contents})
        return word != "close"

    def _commit(self, reflections: int) -> None:
        first = self._rows[CONVERSATIONS]
        numbers = list(range(first, first + reflections * CONVERSATIONS_PER_REFLECTION))
        texts = [f"#{number} {self._sentences()}" for number in numbers]
        ids = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
        new = [uuid.uuid4().hex[:26].upper() for _ in range(reflections)]
        kept = slice(None, None, CONVERSATIONS_PER_REFLECTION)
        now, engine = _now(), self._session
        engine.execute("BEGIN")
        engine.execute(_ADD_CONVERSATIONS, {"ids": ids, "texts": texts, "numbers": numbers, "now": now})
        engine.execute(_ADD_REFLECTIONS, {"ids": new, "conversations": ids[kept], "texts": texts[kept], "now": now})
        engine.execute(_ACCESS, {"id": ids[0], "now": now})
        engine.execute("COMMIT")
        self._commits += 1
        self._rows.update({CONVERSATIONS: len(ids), REFLECTIONS: reflections})

    def _graph(self, operations: int) -> None:
        choose = self._random.choice
        with closing(_open(self._folder / GRAPH)) as engine:
            engine.execute("BEGIN")
            for _ in range(operations):
                ids = [str(uuid.uuid4()) for _ in range(ENTITIES_PER_OPERATION)]
                for id_ in ids:
                    entity = {"id": id_, "name": choose(_WORDS[2]), "observation": self._sentences(), "now": _now()}
                    engine.execute(_ADD_ENTITY, entity)
                for _ in range(RELATIONSHIPS_PER_OPERATION):
                    ends = {"from": choose(ids), "to": choose(ids)}
                    engine.execute(_ADD_RELATIONSHIP, {"id": str(uuid.uuid4()), "now": _now(), **ends})
            engine.execute("COMMIT")
        self._commits += 1
        self._rows[ENTITIES] += operations * ENTITIES_PER_OPERATION
        self._rows[RELATIONSHIPS] += operations * RELATIONSHIPS_PER_OPERATION

    def _close(self) -> Contents:
        """Close the databases. Return the rows counted at each commit, and the digests of the current values."""
        with closing(self._session):
            digests = _contents(self._session, REFLECTION)
        with closing(_open(self._folder / GRAPH)) as engine:
            digests |= _contents(engine, GRAPH)
        return {table: (self._rows[table], digest) for table, (_, digest) in digests.items()}

    def _sentences(self) -> str:
        return " ".join(f"{' '.join(map(self._random.choice, _WORDS))}." for _ in range(6))


def count(folder: Path) -> Contents:
    """Return the contents of both databases in a directory, opened read-only. Raises duckdb.Error."""
    found: Contents = {}
    for name in TABLES:
        with closing(_open(folder / name, "READ_ONLY")) as engine:
            found |= _contents(engine, name)
    return found


def _contents(engine: "duckdb.DuckDBPyConnection", name: str) -> Contents:
    found: Contents = {}
    for table in TABLES[name]:
        digest = f"SELECT count(*), CAST(coalesce(bit_xor(hash(every)), 0) AS VARCHAR) FROM {table} AS every"  # noqa: S608
        row = engine.execute(digest).fetchone()
        assert row is not None
        found[table] = (row[0], row[1])
    return found


def _open(path: Path, how: str = "STORAGE_VERSION 'v1.0.0'") -> "duckdb.DuckDBPyConnection":
    """Open a database, by default in the file format that Session-Buddy writes. Create its tables if it is new."""
    import duckdb  # noqa: PLC0415 - the demo's main process imports this module without DuckDB

    new = not path.exists()
    engine = duckdb.connect(":memory:")
    quoted = str(path).replace("'", "''")
    engine.execute(f"ATTACH '{quoted}' AS memories ({how})")
    engine.execute("USE memories")
    if new:
        engine.execute(_DDL[path.name])
    return engine


def _now() -> str:
    return datetime.now().isoformat()  # noqa: DTZ005 - naive local time, as Session-Buddy writes it


def _answer(document: dict[str, object]) -> None:
    print(json.dumps(document), flush=True)  # noqa: T201 - the answer


def main() -> int:
    """Write until `close` or the end of standard input; with `--count`, print the contents of a directory."""
    if sys.argv[1] == "--count":
        _answer(dict(count(Path(sys.argv[2]))))
        return 0
    writer = Writer(Path(sys.argv[1]))
    while writer.execute(sys.stdin.readline().strip() or "close"):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
