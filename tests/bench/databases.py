"""Databases with Session-Buddy's tables, of any size: sentences in a made-up language, random float embeddings.

    python databases.py make FILE BYTES            creates one, checkpointed and closed
    python databases.py session FILE NUMBER        writes a session, and ends with a checkpoint
    python databases.py session FILE NUMBER wal    writes a session, and leaves it in the WAL

Each runs in a separate process: the bench does not load DuckDB, and the agent's user is another process that writes.
The words have the frequencies of a natural language, so that they compress about as well as real text; embeddings are
nearly incompressible, like real ones. A session adds 50 rows and updates 200 of the old ones.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

MEBIBYTE = 2**20
_MIN_ROWS, _MAX_ROWS = 50, 4000
_LARGE, _ROW_BYTES = 256 * MEBIBYTE, 3530
"""A large database is written at once: growing in steps, with a checkpoint each, leaves half of it as free blocks. Its
texts are longer, so that one of 517 MiB has 190,000 rows.
"""
_WORDS, _WORDS_OF_LARGE = "80 + random() * 200", "280 + random() * 260"
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


_UPDATES = """UPDATE conversations_v2 SET access_count = access_count + 1, importance_score = importance_score * 1.01
    WHERE id IN (SELECT id FROM conversations_v2 ORDER BY md5(id || ?) LIMIT ?)"""

_SESSIONS = 10_000_000
"""The number of the first row that a session adds; those of `make` have smaller ones."""
_NEW_ROWS, _UPDATED_ROWS, _TRANSACTIONS = 50, 200, 2


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
            _run("make", path, mebibytes * MEBIBYTE)
        return path

    @staticmethod
    def session(file: Path, number: int, *, checkpoint: bool) -> None:
        """Write session `number` into a database, as a process that then closes it.

        Without a checkpoint the session is in the WAL, as after the commits of a process that keeps the file open.
        """
        _run("session", file, number, *([] if checkpoint else ["wal"]))

    def copy_to(self, mebibytes: int, data_dir: Path, name: str = "reflection.duckdb") -> Path:
        """Put a copy into a data directory, atomically; return its path."""
        data_dir.mkdir(parents=True, exist_ok=True)
        copy = data_dir / f".{name}.new"
        shutil.copyfile(self.file(mebibytes), copy)
        return copy.replace(data_dir / name)


def _run(*words: object) -> None:
    command = [sys.executable, __file__, *map(str, words)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})


def _prepare(engine: object, seed: float) -> None:
    """Define the functions that make text and embeddings."""
    generator = random.Random(_VOCABULARY)
    lengths = [1 + generator.randrange(4) for _ in range(_VOCABULARY)]
    words = sorted({"".join(generator.choices(_SYLLABLES, k=length)) for length in lengths}, key=lambda w: (len(w), w))
    engine.execute("SELECT setseed(?)", [seed])
    engine.execute("SET VARIABLE vocabulary = ?", [words])
    for statement in _FUNCTIONS:
        engine.execute(statement)


def session(path: Path, number: int, *, checkpoint: bool) -> None:
    """Open a database as its writer, commit a session in some transactions, and close it."""
    import duckdb

    with duckdb.connect(str(path)) as engine:
        engine.execute("PRAGMA disable_checkpoint_on_shutdown")
        _prepare(engine, 1 / (2 + number))
        first = _SESSIONS + number * _NEW_ROWS
        for start in range(first, first + _NEW_ROWS, _NEW_ROWS // _TRANSACTIONS):
            engine.execute("BEGIN")
            engine.execute(_CONVERSATIONS.replace("base.", ""), [start, start, _NEW_ROWS * 4 // 5 // _TRANSACTIONS])
            engine.execute(_REFLECTIONS.replace("base.", ""), [start, start, _NEW_ROWS // 5 // _TRANSACTIONS])
            engine.execute(_UPDATES, [str(start), _UPDATED_ROWS // _TRANSACTIONS])
            engine.execute("COMMIT")
        if checkpoint:
            engine.execute("CHECKPOINT")


def make(path: Path, size: int) -> None:
    """Create a database of at least `size` bytes, and little more."""
    import duckdb

    temporary = path.with_suffix(".making")
    with duckdb.connect(":memory:") as engine:
        engine.execute("SET memory_limit = '1GB'")
        _prepare(engine, 0.25)
        # The storage version that Session-Buddy's engine writes.
        engine.execute(f"ATTACH '{temporary}' AS base (STORAGE_VERSION 'v1.0.0')")
        for statement in _TABLES:
            engine.execute(statement.replace("CREATE TABLE ", "CREATE TABLE base."))
        is_large = size >= _LARGE
        conversations = _CONVERSATIONS.replace(_WORDS, _WORDS_OF_LARGE if is_large else _WORDS)
        count, rows = 0, size // _ROW_BYTES if is_large else _MIN_ROWS
        while temporary.stat().st_size < size:
            engine.execute(conversations, [count, count, rows])
            engine.execute(_REFLECTIONS, [count, count, rows // 4])
            engine.execute("CHECKPOINT base")
            count += rows
            missing = (size - temporary.stat().st_size) * count // temporary.stat().st_size
            rows = min(max(missing, _MIN_ROWS), _MAX_ROWS)
        engine.execute("DETACH base")
    temporary.replace(path)


if __name__ == "__main__":
    action, file, amount, *how = sys.argv[1:]
    if action == "make":
        make(Path(file), int(amount))
    else:
        session(Path(file), int(amount), checkpoint=not how)
