"""Databases with Session-Buddy's tables, of any size: sentences in a made-up language, random float embeddings.

    python databases.py FILE BYTES

creates one, checkpointed and closed, in a separate process, so that the bench does not load DuckDB. The words have the
frequencies of a natural language, so that they compress about as well as real text; embeddings are nearly
incompressible, like real ones.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

MEBIBYTE = 2**20
_MIN_ROWS, _MAX_ROWS = 50, 4000
_SYLLABLES = (
    *("ab", "be", "con", "de", "el", "for", "gra", "in", "ja", "ku", "lo", "mem", "ne", "or"),
    *("pra", "qui", "re", "so", "ta", "un", "ver", "wi", "xe", "ya", "zu"),
)
_VOCABULARY = 6000

_TABLES = (
    """CREATE TABLE conversations_v2(id VARCHAR PRIMARY KEY, content VARCHAR NOT NULL, embedding FLOAT[384],
       category VARCHAR NOT NULL, importance_score FLOAT, memory_tier VARCHAR, access_count INTEGER, project VARCHAR,
       "timestamp" TIMESTAMP, session_id VARCHAR, metadata VARCHAR, fingerprint BLOB)""",
    """CREATE TABLE reflections_v2(id VARCHAR PRIMARY KEY, conversation_id VARCHAR, content VARCHAR NOT NULL,
       embedding FLOAT[384], category VARCHAR NOT NULL, tags VARCHAR[], "timestamp" TIMESTAMP, updated_at TIMESTAMP,
       metadata JSON, confidence_score FLOAT, fingerprint BLOB)""",
)
_FUNCTIONS = (
    # Of n words, sorted by length, the one at n * u^3, where u is uniform in [0, 1).
    """CREATE TEMP MACRO text_of(words) AS array_to_string(list_transform(range(words), lambda i:
       getvariable('vocabulary')[1 + floor(len(getvariable('vocabulary')) * pow(random(), 3))::INTEGER]
       || CASE WHEN random() < 0.1 THEN '. ' WHEN random() < 0.05 THEN ',' || chr(10) ELSE ' ' END), '')""",
    """CREATE TEMP MACRO embedding_of(n) AS
       list_transform(range(n), lambda i: (random() * 2 - 1)::FLOAT)::FLOAT[384]""",
)
_CONVERSATIONS = """INSERT INTO base.conversations_v2 SELECT md5('c' || (? + n))[:16], text_of((80 + random() * 200)::INTEGER),
    embedding_of(384), ['general', 'debugging', 'design'][1 + n % 3], random(), 'long_term', n % 7, 'project-' || n % 5,
    TIMESTAMP '2025-01-01' + to_minutes((? + n)::BIGINT), md5('s' || n // 40), '{"n": ' || n || '}', unhex(md5('f' || n))
    FROM range(?) AS rows(n)"""  # noqa: E501 - a statement
_REFLECTIONS = """INSERT INTO base.reflections_v2 SELECT md5('r' || (? + n))[:26], md5('c' || (? + n))[:16],
    text_of((40 + random() * 100)::INTEGER), embedding_of(384), 'context', ['bench', 'tag-' || n % 9],
    TIMESTAMP '2025-01-01' + to_minutes(n::BIGINT), TIMESTAMP '2025-02-01' + to_minutes(n::BIGINT), '{}', random(),
    unhex(md5('g' || n)) FROM range(?) AS rows(n)"""


class Databases:
    """The databases of a run. Each size is created once and copied when needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, mebibytes: int) -> Path:
        """Return a database of about `mebibytes` MiB. Do not change it."""
        path = self._folder / f"{mebibytes}.duckdb"
        if not path.exists():
            print(f"making a database of {mebibytes} MiB", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, str(path), str(mebibytes * MEBIBYTE)]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
        return path

    def copy_to(self, mebibytes: int, data_dir: Path, name: str = "reflection.duckdb") -> Path:
        """Put a copy into a data directory, atomically; return its path."""
        data_dir.mkdir(parents=True, exist_ok=True)
        copy = data_dir / f".{name}.new"
        shutil.copyfile(self.file(mebibytes), copy)
        return copy.replace(data_dir / name)


def make(path: Path, size: int) -> None:
    """Create a database of at least `size` bytes, and little more."""
    import duckdb

    generator = random.Random(size)
    lengths = [1 + generator.randrange(4) for _ in range(_VOCABULARY)]
    words = sorted({"".join(generator.choices(_SYLLABLES, k=length)) for length in lengths}, key=lambda w: (len(w), w))
    temporary = path.with_suffix(".making")
    with duckdb.connect(":memory:") as engine:
        engine.execute("SET memory_limit = '1GB'")
        engine.execute("SELECT setseed(0.25)")
        engine.execute("SET VARIABLE vocabulary = ?", [words])
        # The storage version that Session-Buddy's engine writes.
        engine.execute(f"ATTACH '{temporary}' AS base (STORAGE_VERSION 'v1.0.0')")
        for statement in _TABLES:
            engine.execute(statement.replace("CREATE TABLE ", "CREATE TABLE base."))
        for statement in _FUNCTIONS:
            engine.execute(statement)
        count, rows = 0, _MIN_ROWS
        while temporary.stat().st_size < size:
            engine.execute(_CONVERSATIONS, [count, count, rows])
            engine.execute(_REFLECTIONS, [count, count, rows // 4])
            engine.execute("CHECKPOINT base")
            count += rows
            missing = (size - temporary.stat().st_size) * count // temporary.stat().st_size
            rows = min(max(missing, _MIN_ROWS), _MAX_ROWS)
        engine.execute("DETACH base")
    temporary.replace(path)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
