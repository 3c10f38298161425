"""
Databases with Session-Buddy's schema, and a process that writes them like Session-Buddy.

    python session_buddy.py write DIR     holds reflection.duckdb open, opens knowledge_graph.duckdb per operation
    python session_buddy.py check         reads paths of copies from stdin, answers with a JSON line each

Each commit changes several tables: commit n adds conversation n and reflection n, and every fifth commit counts an
access to an earlier one in both tables. A graph operation adds an entity and its relationship to the previous entity.
A consistent copy therefore shows which commits it contains, and a mixture of two states is detected.

The writer prints a JSON line for each event (`open`, `commit`, `graph`, `checkpoint`, `idle`, `failed`, `closed`), a
commit's after it was acknowledged. It reads commands from stdin: `run`, `pause`, `commit N`, `graph N`, `checkpoint`,
`reopen`, `crash`; at the end of stdin it closes its databases and ends.

The module runs without the agent, with DuckDB 1.5 or newer.
"""

import argparse
import atexit
import functools
import hashlib
import itertools
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

REFLECTION = "reflection.duckdb"
GRAPH = "knowledge_graph.duckdb"
TIMEOUT = 180.0

REAL = Path(__file__).parents[3] / "shared" / "data" / "session-buddy"
"""Databases written by Session-Buddy itself, in a folder for each of STATES. Copy them before use."""


WRITERS = {"1.5.3": Path(sys.prefix) / "writer", "2.0.1": Path(sys.prefix) / "writer-2.0.1"}
"""DuckDB versions that Session-Buddy writes with -> the folder where `make setup` installs them."""


@dataclass(frozen=True)
class State:
    """Rows of conversations_v2, reflections_v2, kg_entities and kg_relationships, and how many have an embedding."""

    rows: tuple[int, int, int, int]
    embedded: tuple[int, int, int]
    storage_version: int = 64
    folds: bool = True
    """Whether DuckDB can checkpoint the WAL into the main file without extensions."""

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        """Kind of memory -> number of rows, number of rows with an embedding."""
        names = ("conversation", "reflection", "entity", "relationship")
        return dict(zip(names, zip(self.rows, (*self.embedded, 0), strict=True), strict=True))


STATES = {
    "closed": State((200, 50, 40, 66), (187, 47, 39)),
    "mid": State((220, 61, 40, 66), (208, 58, 39)),
    "first": State((15, 3, 3, 5), (13, 3, 3)),
    "hnsw": State((210, 50, 40, 66), (196, 47, 39), folds=False),
    "duckdb2": State((230, 61, 40, 66), (217, 58, 39), storage_version=999),
}

_ACCESS_EVERY = 5
_NUMBERS = itertools.count()

_REFLECTION_TABLES = (
    """CREATE TABLE IF NOT EXISTS conversations_v2(id VARCHAR PRIMARY KEY, content VARCHAR NOT NULL,
       embedding FLOAT[384], category VARCHAR NOT NULL, subcategory VARCHAR, importance_score FLOAT DEFAULT 0.5,
       memory_tier VARCHAR DEFAULT 'long_term', access_count INTEGER DEFAULT 0, last_accessed TIMESTAMP,
       project VARCHAR, namespace VARCHAR DEFAULT 'default', "timestamp" TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
       session_id VARCHAR, user_id VARCHAR DEFAULT 'default', searchable_content VARCHAR, reasoning VARCHAR,
       metadata VARCHAR, source_type VARCHAR, turn_parent_id VARCHAR, causal_parent_id VARCHAR, fingerprint BLOB)""",
    """CREATE TABLE IF NOT EXISTS reflections_v2(id VARCHAR PRIMARY KEY, conversation_id VARCHAR,
       content VARCHAR NOT NULL, embedding FLOAT[384], category VARCHAR NOT NULL DEFAULT 'context',
       subcategory VARCHAR, importance_score FLOAT DEFAULT 0.5, memory_tier VARCHAR DEFAULT 'long_term',
       tags VARCHAR[], related_entities VARCHAR[], namespace VARCHAR DEFAULT 'default', project VARCHAR,
       access_count INTEGER DEFAULT 0, last_accessed TIMESTAMP, "timestamp" TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
       created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, metadata JSON,
       insight_type VARCHAR DEFAULT 'general', usage_count INTEGER DEFAULT 0, last_used_at TIMESTAMP,
       confidence_score FLOAT DEFAULT 0.5, fingerprint BLOB,
       FOREIGN KEY (conversation_id) REFERENCES conversations_v2(id))""",
)
_GRAPH_TABLES = (
    """CREATE TABLE IF NOT EXISTS kg_entities(id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL,
       entity_type VARCHAR NOT NULL, observations VARCHAR[], properties JSON,
       created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, metadata JSON,
       embedding FLOAT[384])""",
    """CREATE TABLE IF NOT EXISTS kg_relationships(id VARCHAR PRIMARY KEY, from_entity VARCHAR NOT NULL,
       to_entity VARCHAR NOT NULL, relation_type VARCHAR NOT NULL, properties JSON,
       created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
       metadata JSON)""",
)
_CONVERSATION = """INSERT INTO
    conversations_v2(id, content, embedding, category, project, session_id, metadata, fingerprint)
    VALUES (?, ?, ?, 'general', 'demo', ?, ?, unhex(md5(?)))"""
_REFLECTION = """INSERT INTO reflections_v2(id, conversation_id, content, embedding, tags, metadata, fingerprint)
    VALUES (?, ?, ?, ?, ['demo', 'writer'], ?, unhex(md5(?)))"""
_WORDS = (
    *("a", "memory", "of", "what", "was", "said", "and", "done", "in", "session", "about", "code", "tests", "data"),
    *("記憶", "☂", '"x"', "\\", "\t"),
)


# ------------------------------------------------------------------------------------------------------ databases


def create(
    data_dir: Path, *, commits: int | None = 0, entities: int | None = 0, embeddings: bool = False, own: bool = False
) -> None:
    """Create both databases, closed (checkpointed), with so many commits in each. None: do not create that one.

    A database that was created before is copied, unless `own` requests a new one, whose bytes are unique.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    for name, count, create_one in ((REFLECTION, commits, _create_reflection), (GRAPH, entities, _create_graph)):
        if count is None:
            continue
        path = data_dir / name
        if own or path.exists():
            create_one(path, count, embeddings)
            continue
        cached = _cache() / f"{count}-{embeddings}-{name}"
        if not cached.exists():
            create_one(cached, count, embeddings)
        shutil.copyfile(cached, path)


@functools.cache
def _cache() -> Path:
    """Return the folder of this process's cached databases."""
    folder = Path(tempfile.mkdtemp(prefix="session-buddy-"))
    atexit.register(shutil.rmtree, folder)
    return folder


def _create_reflection(path: Path, commits: int, embeddings: bool) -> None:
    with opened(path, _REFLECTION_TABLES) as base:
        base.execute("BEGIN")
        for n in range(commits):
            _commit(base, n, payload=200, embeddings=embeddings)
        base.execute("COMMIT")


def _create_graph(path: Path, entities: int, _embeddings: bool) -> None:
    with opened(path, _GRAPH_TABLES) as base:
        for n in range(entities):
            _graph(base, n)


@contextmanager
def _opened(path: Path, tables: tuple[str, ...], *, own_storage: bool = False) -> Iterator["object"]:
    """Open a database in an engine of its own, as Session-Buddy does."""
    import duckdb

    with duckdb.connect(":memory:") as connection:
        _attach(connection, path, "base", tables, own_storage=own_storage)
        yield connection


@contextmanager
def opened(path: Path, tables: tuple[str, ...] = ()) -> Iterator["object"]:
    """Open a database in this process's engine, because a new engine takes 20 ms; close (checkpoint) it."""
    connection, name = _engine().cursor(), f"base_{next(_NUMBERS)}"
    try:
        _attach(connection, path, name, tables)
        yield connection
    finally:
        connection.close()
        _engine().execute(f"DETACH DATABASE IF EXISTS {name}")


def _attach(connection, path: Path, name: str, tables: tuple[str, ...], *, own_storage: bool = False) -> None:
    # DuckDB 1.5 cannot read the default storage version of 2.0.
    connection.execute(f"ATTACH '{path}' AS {name}" + ("" if own_storage else " (STORAGE_VERSION 'v1.0.0')"))
    connection.execute(f"USE {name}")
    for table in tables:
        connection.execute(table)


@functools.cache
def _engine():
    import duckdb

    return duckdb.connect(":memory:")


def make(path: Path, *statements: str) -> None:
    """Run statements in a database with all tables, which is created if it does not exist; close (checkpoint) it."""
    with opened(path, _REFLECTION_TABLES + _GRAPH_TABLES) as base:
        for statement in statements:
            base.execute(statement)


def text_of(n: int, length: int = 200) -> str:
    """Return the text of conversation n, which is always the same."""
    words = random.Random(n)
    text = f"#{n}"
    while len(text) < length:
        text += " " + words.choice(_WORDS)
    return text


def _embedding(n: int) -> list[float]:
    numbers = random.Random(n)
    return [numbers.uniform(-1, 1) for _ in range(384)]


def row_id(kind: str, n: int) -> str:
    """Return the ID of row n: `c` of a conversation, `r` reflection, `e` entity, `k` relationship."""
    return hashlib.sha256(f"{kind}{n}".encode()).hexdigest()[:16]


def _commit(base, n: int, *, payload: int, embeddings: bool) -> None:
    text, vector = text_of(n, payload), _embedding(n) if embeddings else None
    note = json.dumps({"n": n})
    base.execute(_CONVERSATION, [row_id("c", n), text, vector, str(n), note, text])
    base.execute(_REFLECTION, [row_id("r", n), row_id("c", n), text, vector, note, text])
    if n % _ACCESS_EVERY:
        return  # a commit with inserts only is possible during a checkpoint, into another sidecar
    earlier = random.Random(n).randint(0, n)
    base.execute("UPDATE conversations_v2 SET access_count = access_count + 1 WHERE id = ?", [row_id("c", earlier)])
    base.execute("UPDATE reflections_v2 SET usage_count = usage_count + 1 WHERE id = ?", [row_id("r", earlier)])


def _graph(base, n: int) -> None:
    base.execute("BEGIN")
    base.execute(
        "INSERT INTO kg_entities(id, name, entity_type, observations) VALUES (?, ?, 'thing', [?])",
        [row_id("e", n), f"entity {n}", text_of(n)],
    )
    if n:
        base.execute(
            "INSERT INTO kg_relationships(id, from_entity, to_entity, relation_type) VALUES (?, ?, ?, 'follows')",
            [row_id("k", n), row_id("e", n), row_id("e", n - 1)],
        )
    base.execute("COMMIT")


# -------------------------------------------------------------------------------------------------------- writing


class _Session:
    """The writing process."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.data_dir: Path = arguments.data_dir
        self.commands: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.printing = threading.Lock()
        self.checkpoint_due = threading.Event()
        self.ended = threading.Event()
        self.n = self.g = 0

    def report(self, event: str, **fields: object) -> None:
        with self.printing:
            print(json.dumps({"event": event, **fields}), flush=True)

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self._opened(GRAPH, _GRAPH_TABLES) as graph:
            (self.g,) = graph.execute("SELECT count(*) FROM kg_entities").fetchone()
        while self._session():
            self.report("reopened")
        self.report("closed", commits=self.n, entities=self.g)

    def _opened(self, name: str, tables: tuple[str, ...]):
        return _opened(self.data_dir / name, tables, own_storage=self.arguments.own_storage)

    def _session(self) -> bool:
        """Keep the database open and carry out commands; return whether it must be reopened."""
        with self._opened(REFLECTION, _REFLECTION_TABLES) as base:
            base.execute(f"SET debug_checkpoint_sleep_ms = {self.arguments.slow_checkpoints}")
            (self.n,) = base.execute("SELECT count(*) FROM conversations_v2").fetchone()
            self.report("open", commits=self.n, entities=self.g)
            checkpoints = threading.Thread(target=self._checkpoints, args=(base.cursor(),), name="checkpoints")
            self.ended.clear()
            checkpoints.start()
            try:
                return self._obey(base)
            finally:
                self.ended.set()
                self.checkpoint_due.set()
                checkpoints.join()

    def _obey(self, base) -> bool:
        running = not self.arguments.paused
        while True:
            try:
                command = self.commands.get(block=not running)
            except queue.Empty:
                self._work(base)
                continue
            if command is None:
                return False
            verb, _, count = command.partition(" ")
            if verb == "reopen":
                return True
            if verb == "crash":
                os._exit(9)
            if verb in {"run", "pause"}:
                running = verb == "run"
            elif verb == "commit":
                for _ in range(int(count or 1)):
                    self._one_commit(base)
            elif verb == "graph":
                for _ in range(int(count or 1)):
                    self._one_graph()
            elif verb == "checkpoint":
                base.execute("CHECKPOINT base")
                self.report("checkpoint", n=self.n - 1)
            if not running:
                self.report("idle", n=self.n - 1, g=self.g - 1)

    def _work(self, base) -> None:
        self._one_commit(base, checkpoint=self.n % self.arguments.checkpoint_every == 1)
        if self.n % self.arguments.graph_every == 0:
            self._one_graph()
        time.sleep(self.arguments.interval)

    def _one_commit(self, base, *, checkpoint: bool = False) -> None:
        base.execute("BEGIN")
        _commit(base, self.n, payload=self.arguments.payload, embeddings=self.arguments.embeddings)
        if checkpoint:
            # The other thread checkpoints while this transaction is open: only then are commits possible meanwhile.
            self.checkpoint_due.set()
        base.execute("COMMIT")
        self.report("commit", n=self.n)
        self.n += 1

    def _one_graph(self) -> None:
        with self._opened(GRAPH, ()) as graph:
            _graph(graph, self.g)
        self.report("graph", n=self.g)
        self.g += 1

    def _checkpoints(self, cursor) -> None:
        import duckdb

        while self.checkpoint_due.wait() and not self.ended.is_set():
            self.checkpoint_due.clear()
            try:
                cursor.execute("CHECKPOINT base")
                self.report("checkpoint", n=self.n - 1)
            except duckdb.TransactionException:
                self.checkpoint_due.set()  # a transaction with an update was open: try again
                self.ended.wait(0.001)

    def _listen(self) -> None:
        for line in sys.stdin:
            self.commands.put(line.strip())
        self.commands.put(None)


def _popen() -> Callable[..., "subprocess.Popen[str]"]:
    """Return the function that starts a process; imported late, because the module also runs without the tests."""
    from tests.support.zygote import popen

    return popen


class Writer:
    """
    Starts and controls the writing process: `with Writer(data_dir) as writer: ...`; it is killed at the end.

    `commits` and `entities` are the numbers of the last acknowledged ones, -1 if there are none. Waits have the limit
    TIMEOUT.
    """

    def __init__(self, data_dir: Path, *options: str, python: str = sys.executable, engine: str | None = None) -> None:
        """`engine`: a version of WRITERS; None: the DuckDB of `python`. 2.x uses its default storage version."""
        start = subprocess.Popen if engine else _popen()
        environment = os.environ | ({"PYTHONPATH": str(WRITERS[engine])} if engine else {})
        own = ["--own-storage"] if engine and engine >= "2" else []
        self._process = start(
            [python, __file__, "write", str(data_dir), *options, *own],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._changed = threading.Condition()
        self.commits = self.entities = -1
        self.checkpoints = 0
        self.events: list[dict] = []
        self._reader = threading.Thread(target=self._read, name="session-buddy", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        self.wait(lambda: any(event["event"] == "open" for event in self.events))
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true; it is checked after each event."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition() or self._process.poll() is not None, TIMEOUT):
                raise TimeoutError("the writer did not reach the state in time")
            if not condition():
                raise RuntimeError(f"the writer ended: {self.events[-3:]}")

    def send(self, command: str) -> None:
        """Send a command without waiting."""
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def run(self, command: str) -> None:
        """Send a command to a paused writer and wait until it is carried out."""
        before = self._idle()
        self.send(command)
        self.wait(lambda: self._idle() > before)

    def close(self) -> int:
        """End the session like Session-Buddy; return the exit status, 0 if nothing failed."""
        self._process.stdin.close()
        self._reader.join(TIMEOUT)
        return self._process.wait(TIMEOUT)

    def crash(self) -> None:
        """Kill the writer; everything since the last checkpoint is in the WAL only."""
        self._process.kill()
        self._process.wait(TIMEOUT)

    def _idle(self) -> int:
        return sum(event["event"] == "idle" for event in self.events)

    def _read(self) -> None:
        for line in self._process.stdout:
            event = json.loads(line)
            with self._changed:
                self.events.append(event)
                if event["event"] == "commit":
                    self.commits = event["n"]
                elif event["event"] == "graph":
                    self.entities = event["n"]
                elif event["event"] == "open":
                    self.commits, self.entities = event["commits"] - 1, event["entities"] - 1
                elif event["event"] == "checkpoint":
                    self.checkpoints += 1
                self._changed.notify_all()
        self._process.wait()
        with self._changed:
            self._changed.notify_all()


# ------------------------------------------------------------------------------------------------------- checking


@dataclass(frozen=True)
class Finding:
    """The result of checking a copy: its last commit, -1 if there is none, and its problems."""

    last: int
    problems: tuple[str, ...]


_REFLECTION_CHECKS = {
    "conversations are missing or duplicated": "SELECT count(*) = max(session_id::INT) + 1 FROM s.conversations_v2",
    "a conversation is duplicated": "SELECT count(DISTINCT id) = count(*) FROM s.conversations_v2",
    "a reflection is duplicated": "SELECT count(DISTINCT id) = count(*) FROM s.reflections_v2",
    "the numbers of reflections and conversations differ": """SELECT (SELECT count(*) FROM s.conversations_v2)
        = (SELECT count(*) FROM s.reflections_v2)""",
    "a reflection has no conversation": """SELECT (SELECT count(*) FROM s.conversations_v2) = count(*)
        FROM s.conversations_v2 c JOIN s.reflections_v2 r ON r.conversation_id = c.id AND r.content = c.content""",
    "accesses are missing or duplicated": f"""SELECT sum(access_count) = ceil(count(*) / {_ACCESS_EVERY})
        FROM s.conversations_v2""",
    "uses are missing or duplicated": f"""SELECT sum(usage_count) = ceil(count(*) / {_ACCESS_EVERY})
        FROM s.reflections_v2""",
    "accesses and uses differ": """SELECT count(*) = 0 FROM s.conversations_v2 c
        JOIN s.reflections_v2 r ON r.conversation_id = c.id WHERE r.usage_count <> c.access_count""",
    "a text was changed": """SELECT bool_and(hex(fingerprint) = upper(md5(content)))
        FROM s.conversations_v2""",
}
_GRAPH_CHECKS = {
    "an entity is duplicated": "SELECT count(DISTINCT id) = count(*) FROM s.kg_entities",
    "relationships are missing or duplicated": """SELECT (SELECT greatest(count(*) - 1, 0) FROM s.kg_entities)
        = (SELECT count(DISTINCT id) FROM s.kg_relationships)""",
    "a relationship has no target entity": """SELECT (SELECT count(*) FROM s.kg_relationships) = count(*)
        FROM s.kg_relationships k JOIN s.kg_entities e ON e.id = k.to_entity""",
}


def check(copy: Path) -> Finding:
    """Open a copy read-only and check which commits it contains. Call it in a process that may crash."""
    import duckdb

    table, checks = (
        ("conversations_v2", _REFLECTION_CHECKS) if copy.name == REFLECTION else ("kg_entities", _GRAPH_CHECKS)
    )
    with duckdb.connect(":memory:", config={"threads": 1}) as engine:
        try:
            engine.execute(f"ATTACH '{copy}' AS s (READ_ONLY)")
            (count,) = engine.execute(f"SELECT count(*) FROM s.{table}").fetchone()
            # An aggregate over no rows is NULL: an empty database satisfies every invariant.
            problems = [name for name, query in checks.items() if engine.execute(query).fetchone()[0] is False]
        except duckdb.Error as error:
            return Finding(-1, (f"cannot be read: {str(error).splitlines()[0]}",))
    return Finding(count - 1, tuple(problems))


class Checker:
    """Runs `check` in a separate process: `with Checker() as checker: checker.check(path)`."""

    def __enter__(self) -> Self:
        self._process = _popen()(
            [sys.executable, __file__, "check"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(TIMEOUT)
        self._process.stdout.close()

    def check(self, copy: Path) -> Finding:
        self._process.stdin.write(f"{copy}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return Finding(-1, ("DuckDB crashed on it",))
        finding = json.loads(answer)
        return Finding(finding["last"], tuple(finding["problems"]))


def main() -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("data_dir", type=Path)
    write.add_argument("--paused", action="store_true", help="wait for commands")
    write.add_argument("--interval", type=float, default=0.001, help="seconds between commits")
    write.add_argument("--checkpoint-every", type=int, default=10, help="commits")
    write.add_argument("--graph-every", type=int, default=5, help="commits")
    write.add_argument("--payload", type=int, default=200, help="characters of text per row")
    write.add_argument("--slow-checkpoints", type=int, default=0, help="added duration of each checkpoint, ms")
    write.add_argument("--embeddings", action="store_true")
    write.add_argument("--own-storage", action="store_true", help="use the default storage version of this DuckDB")
    commands.add_parser("check")
    arguments = parser.parse_args()
    if arguments.command == "check":
        for line in sys.stdin:
            finding = check(Path(line.rstrip("\n")))
            print(json.dumps({"last": finding.last, "problems": finding.problems}), flush=True)
        return 0
    session = _Session(arguments)
    try:
        session.run()
    except Exception as error:
        session.report("failed", error=f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
