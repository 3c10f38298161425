"""A process that writes memories as Session-Buddy does. Alone with the checker in the demo to use DuckDB.

    python -m agent.entrypoints.demo.writer DIR

It holds reflection.duckdb open from its start to its end and opens knowledge_graph.duckdb for each operation. It obeys
one command per line of its standard input, and answers each with one or more JSON lines, the last with `"done"`:

    commit N      N reflections and four times as many conversations, in one transaction, into the WAL
    graph N       N operations in one transaction on the graph
    work          commit small transactions until the next command comes
    checkpoint    fold the WAL into the main file
    close         close everything and end

The end of its input is a `close`. Any error ends it, with a traceback and exit status 1.
"""

import hashlib
import json
import os
import random
import select
import sys
import uuid
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path

import duckdb

from agent.entrypoints.demo import shape

BETWEEN_COMMITS_SECONDS = 0.05
COMMITS_PER_LINE = 20

_WHO = ("The parser", "A test", "The cache", "The migration", "Our deployment", "The retry", "The index", "The hook")
_DID = ("failed on", "was slow with", "now handles", "forgot", "was rewritten for", "had a race in", "is proven on")
_WHAT = ("empty input", "time zones", "large files", "names with ümlauts", "a full disk", "two writers", "日本語")
_SO = ("we added a test", "the fix is one line", "keep it in mind", "measure first", "see the notes", "done ✓")

# One in eight has no embedding: so it looks where the local embedding server was away for a while.
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
_MET = "UPDATE conversations_v2 SET access_count = access_count + 1, last_accessed = $now::TIMESTAMP WHERE id = $id"


class Commands:
    """Lines from a descriptor, without a buffer that would hide from `select` that one is there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._read = descriptor, b""

    def waiting(self, seconds: float) -> bool:
        """Say whether a command comes (or the input ends) within so many seconds."""
        return b"\n" in self._read or bool(select.select([self._descriptor], [], [], seconds)[0])

    def next(self) -> str:
        """Return the next command; `close` at the end of the input."""
        while b"\n" not in self._read:
            more = os.read(self._descriptor, 4096)
            if not more:
                return "close"
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode().strip()


class Writer:
    """One session's writer: holds reflection.duckdb open for as long as it lives."""

    def __init__(self, folder: Path, commands: Commands) -> None:
        self._folder, self._commands = folder, commands
        self._random = random.Random(7)  # noqa: S311 - made-up sentences, no secrets
        self._rows: Counter[str] = Counter()
        self.commits = self.checkpoints = 0
        self._session = self._open(shape.REFLECTION)
        self._tell("opened reflection.duckdb, and keeps it open for the whole session")

    def _open(self, name: str) -> duckdb.DuckDBPyConnection:
        path = self._folder / name
        new = not path.exists()
        engine = duckdb.connect(":memory:")
        quoted = str(path).replace("'", "''")
        engine.execute(f"ATTACH '{quoted}' AS memories (STORAGE_VERSION '{shape.STORAGE_VERSION}')")
        engine.execute("USE memories")
        if new:
            for statement in shape.DDL[name]:
                engine.execute(statement)
        return engine

    def commit(self, reflections: int) -> None:
        """Commit so many reflections and their conversations in one transaction."""
        conversations = reflections * shape.CONVERSATIONS_PER_REFLECTION
        first = self._rows[shape.CONVERSATIONS]
        numbers = list(range(first, first + conversations))
        texts = [self._sentence(number) for number in numbers]
        ids = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
        now = datetime.now().isoformat()  # noqa: DTZ005 - naive local time, as Session-Buddy writes it
        kept = slice(None, None, shape.CONVERSATIONS_PER_REFLECTION)
        engine = self._session
        engine.execute("BEGIN")
        engine.execute(_ADD_CONVERSATIONS, {"ids": ids, "texts": texts, "numbers": numbers, "now": now})
        new = [uuid.uuid4().hex[:26].upper() for _ in range(reflections)]
        engine.execute(_ADD_REFLECTIONS, {"ids": new, "conversations": ids[kept], "texts": texts[kept], "now": now})
        engine.execute(_MET, {"id": ids[0], "now": now})
        engine.execute("COMMIT")
        self.commits += 1
        self._rows.update({shape.CONVERSATIONS: conversations, shape.REFLECTIONS: reflections})

    def graph(self, operations: int) -> None:
        """Open the graph, add entities and relationships in one transaction, close it."""
        now = datetime.now().isoformat()  # noqa: DTZ005 - naive local time
        with closing(self._open(shape.GRAPH)) as engine:
            engine.execute("BEGIN")
            for _ in range(operations):
                ids = [str(uuid.uuid4()) for _ in range(shape.ENTITIES_PER_OPERATION)]
                for entity in ids:
                    name, seen = self._random.choice(_WHAT), self._sentence(0)
                    engine.execute(_ADD_ENTITY, {"id": entity, "name": name, "observation": seen, "now": now})
                for _ in range(shape.RELATIONSHIPS_PER_OPERATION):
                    ends = {"from": self._random.choice(ids), "to": self._random.choice(ids)}
                    engine.execute(_ADD_RELATIONSHIP, {"id": str(uuid.uuid4()), "now": now, **ends})
            engine.execute("COMMIT")
        self.commits += 1
        self._rows.update(
            {
                shape.ENTITIES: operations * shape.ENTITIES_PER_OPERATION,
                shape.RELATIONSHIPS: operations * shape.RELATIONSHIPS_PER_OPERATION,
            }
        )

    def obey(self, command: str) -> bool:
        """Carry out one command; return False after the last."""
        word, _, argument = command.partition(" ")
        before = Counter(self._rows)
        if word == "commit":
            self.commit(int(argument))
            self._done(f"committed {self._news(before)} into the WAL")
        elif word == "graph":
            self.graph(int(argument))
            self._done(f"opened knowledge_graph.duckdb, added {self._news(before)}, closed it again")
        elif word == "work":
            self._work()
        elif word == "checkpoint":
            self._session.execute("CHECKPOINT memories")
            self.checkpoints += 1
            self._done("checkpoint: the WAL is folded into the main file")
        elif word == "close":
            self._close()
            return False
        else:
            raise ValueError(f"unknown command {command!r}")
        return True

    def _work(self) -> None:
        started, shown = self.commits, Counter(self._rows)
        while not self._commands.waiting(BETWEEN_COMMITS_SECONDS):
            self.commit(1)
            if (self.commits - started) % COMMITS_PER_LINE == 0:
                self._tell(f"{COMMITS_PER_LINE} commits more: {self._news(shown)} into the WAL")
                shown = Counter(self._rows)
        self._done(f"pauses after {self.commits - started} small commits")

    def _close(self) -> None:
        """Say what was written, as DuckDB itself sees it in this process, and close: that is a checkpoint too."""
        tally: dict[str, tuple[int, str]] = {}
        with closing(self._open(shape.GRAPH)) as graph:
            for engine, name in ((self._session, shape.REFLECTION), (graph, shape.GRAPH)):
                for table in shape.TABLES[name]:
                    row = engine.execute(shape.digest_query(table)).fetchone()
                    assert row is not None
                    # The rows are those counted at each commit, not those that the engine now finds.
                    tally[table] = (self._rows[table], row[1])
        self._session.close()
        self._done("closed reflection.duckdb: the session is over", tally=tally)

    def _sentence(self, number: int) -> str:
        choose = self._random.choice
        lines = [f"{choose(_WHO)} {choose(_DID)} {choose(_WHAT)}: {choose(_SO)}." for _ in range(6)]
        return f"#{number} " + " ".join(lines)

    def _news(self, before: Counter[str]) -> str:
        names = {
            shape.CONVERSATIONS: "conversations",
            shape.REFLECTIONS: "reflections",
            shape.ENTITIES: "entities",
            shape.RELATIONSHIPS: "relationships",
        }
        new = self._rows - before
        return " and ".join(f"{new[table]} {name}" for table, name in names.items() if new[table])

    def _done(self, text: str, **more: object) -> None:
        files = {path.name: path.stat().st_size for path in sorted(self._folder.glob("*.duckdb*"))}
        self._tell(text, done=True, files=files, commits=self.commits, checkpoints=self.checkpoints, **more)

    def _tell(self, text: str, **more: object) -> None:
        print(json.dumps({"text": text, "rows": self._rows, **more}), flush=True)  # noqa: T201 - that is the answer


def main() -> int:
    """Write until told to close, or until standard input ends."""
    commands = Commands(sys.stdin.fileno())
    writer = Writer(Path(sys.argv[1]), commands)
    while writer.obey(commands.next()):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
