"""Comparing the rows of a copy with a row set: the rows that are not in it are those whose digests are new."""

import functools
import hashlib
import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from agent.adapters import row_set_file
from agent.adapters.duckdb.child import comparing
from agent.adapters.duckdb.child.comparing import Comparing
from agent.adapters.duckdb.child.engine import Engine, OutOfMemory, opened
from agent.adapters.duckdb.child.reading import Reading, Unread
from agent.adapters.duckdb.child_protocol import KNOWN, ROWS
from tests.support import session_buddy

TABLES = {
    "conversations_v2": ("content", "project", "session_id", "category", "namespace"),
    "reflections_v2": ("content", "project", "category", "tags", "conversation_id"),
    "kg_entities": ("name", "entity_type", "observations", "properties"),
    "kg_relationships": ("from_entity", "to_entity", "relation_type", "properties"),
}
SCHEMA = [
    *(
        f"CREATE TABLE {table}(id VARCHAR, {', '.join(f'{column} VARCHAR' for column in columns)},"
        " created_at TIMESTAMP, timestamp TIMESTAMP, embedding FLOAT[384], access_count INTEGER)"
        for table, columns in TABLES.items()
    )
]
SMALL_CHUNKS = 4
INFINITE, NAN = "'inf'::FLOAT", "'nan'::FLOAT"


def vector(number: str) -> str:
    """Return the expression for an embedding with this number at each position i."""
    return f"list_transform(range(384), lambda i: {number})::FLOAT[384]"


base = session_buddy.opened


@contextmanager
def wal_of(path: Path):
    """Open the database for changes that stay in the WAL."""
    live = Path(shutil.copy(path, path.with_name("live.duckdb")))
    wal, live_wal = path.with_name(f"{path.name}.wal"), live.with_name("live.duckdb.wal")
    if wal.exists():
        shutil.copy(wal, live_wal)
    with session_buddy.opened(live) as connection:
        yield connection
        shutil.copy(live, path)
        if live_wal.exists():
            shutil.copy(live_wal, wal)
        else:
            wal.unlink(missing_ok=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "knowledge_graph_x.duckdb"


@contextmanager
def reading(path: Path, known: Path | None = None, graph: str = "x"):
    """Yield what reads the database, and the answer of a comparison with the row set `known`."""
    folder = path.with_name("scratch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if known is not None:
        shutil.copy(known, folder / KNOWN)
    with opened(path) as engine:
        read = Reading(engine, graph, folder)
        yield read, read.compare(hashlib.sha256(path.read_bytes()).hexdigest())


def states(read: Reading) -> list[tuple[str, str, str]]:
    """Return kind, ID and digest of all rows in the pages."""
    found = []
    while (page := read.page()) is not None:
        found += [tuple(entry[:3]) for entry in page]
    return found


def recorded(path: Path, *, graph: str = "x") -> Path:
    """Return a row set of all rows."""
    return recorded_states(path, graph=graph)[0]


def recorded_states(path: Path, *, graph: str = "x") -> tuple[Path, list[tuple[str, str, str]]]:
    """Return a row set of all rows, and their states."""
    with reading(path, graph=graph) as (read, _):
        return Path(shutil.copy(path.with_name("scratch") / ROWS, path.with_name("recorded.rows"))), states(read)


def all_states(path: Path) -> list[tuple[str, str, str]]:
    with opened(path) as engine:
        return states(Reading(engine, "x", path.with_name("scratch")))


def new_states(path: Path, known: Path) -> list[tuple[str, str, str]]:
    with reading(path, known) as (read, answer):
        found = states(read)
        assert answer[0] >= answer[1] >= len(found)
        return found


@functools.cache
def filled(count: int) -> bytes:
    """Return a database with so many rows of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "filled.duckdb")
        with base(path, SCHEMA) as connection:
            for table, columns in TABLES.items():
                values = ", ".join(f"'{column} ' || n" for column in columns)
                connection.execute(
                    f"INSERT INTO {table} SELECT n, {values}, TIMESTAMP '2026-01-01', NULL,"
                    f" if(n % 2 = 0, {vector('i / 384')}, NULL), 0 FROM range({count}) r(n)"
                )
        return path.read_bytes()


def fill(path: Path, count: int = 20) -> None:
    path.write_bytes(filled(count))


def another_main_file(path: Path) -> None:
    """Change the main file, and no memory."""
    with base(path) as connection:
        connection.execute("CREATE TABLE more AS SELECT 1")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(comparing, "CHUNK_ROWS", SMALL_CHUNKS)


# ---------------------------------------------------------------------------------------------- changes, one by one


CHANGES = [
    *(f"UPDATE {table} SET {column} = 'changed'" for table, columns in TABLES.items() for column in columns),
    *(f"UPDATE {table} SET created_at = '2026-02-02'" for table in TABLES if "v" not in table),
    "UPDATE conversations_v2 SET timestamp = '2026-02-02'",
    f"UPDATE kg_entities SET embedding = {vector('1')}",
]
CHANGED_EMBEDDINGS = [
    f"UPDATE kg_entities SET embedding = {e}" for e in ("NULL", vector(INFINITE), vector("nullif(i, 9)"))
]


def test_a_changed_row_is_new(path):
    """Each change is of a row in another range of rows that are hashed together."""
    changes = [*((change, 1) for change in CHANGES), *((change, 0) for change in CHANGED_EMBEDDINGS)]
    # Rows with odd numbers have no embedding.
    rows = {str(SMALL_CHUNKS * number + odd): change for number, (change, odd) in enumerate(changes)}
    fill(path, SMALL_CHUNKS * len(rows))
    known, before = recorded_states(path)
    with wal_of(path) as connection:
        for row, change in rows.items():
            connection.execute(f"{change} WHERE id = '{row}'")
        connection.execute("UPDATE reflections_v2 SET id = 'another' WHERE id = '2'")
        connection.execute("INSERT INTO conversations_v2(id, content) VALUES ('new', 'text')")
    new = new_states(path, known)
    assert {rows.get(row, row) for _, row, _ in new} == {*rows.values(), "another", "new"}
    assert not set(new) & set(before)
    known, after = recorded_states(path)
    assert set(after) - set(before) == set(new)
    assert new_states(path, known) == []


def test_rows_whose_memories_did_not_change_are_not_new(path):
    fill(path)
    known = recorded(path)
    with base(path) as connection:
        for change in (
            "UPDATE conversations_v2 SET access_count = access_count + 1",
            f"UPDATE kg_entities SET embedding = {vector('1')} WHERE id = '2'",
            "DELETE FROM kg_relationships WHERE id IN ('0', '7', '19')",
            "ALTER TABLE reflections_v2 ADD COLUMN insight_type VARCHAR",
            "CREATE TABLE more AS SELECT * FROM reflections_v2",
            "INSERT INTO conversations_v2(id, content) VALUES ('', 'no ID'), (NULL, 'no ID'), ('no text', '  ')",
            # The rows get other rowids.
            "CREATE OR REPLACE TABLE conversations_v2 AS SELECT * FROM conversations_v2 ORDER BY id DESC",
        ):
            connection.execute(change)
    assert new_states(path, known) == []


def test_relationships_of_a_renamed_entity_are_new(path):
    fill(path)
    with base(path) as connection:
        connection.execute("UPDATE kg_relationships SET from_entity = '1' WHERE id IN ('4', '5')")
        connection.execute("UPDATE kg_relationships SET to_entity = '1' WHERE id = '6'")
    known = recorded(path)
    with base(path) as connection:
        connection.execute("UPDATE kg_entities SET name = 'renamed' WHERE id = '1'")
    found = new_states(path, known)
    assert Counter(state[:2] for state in found) == Counter(
        [("entity", "1"), *(("relationship", row) for row in ("4", "5", "6"))]
    )


def test_rows_of_equal_ids_are_compared_each(path):
    fill(path)
    with base(path) as connection:
        connection.execute("INSERT INTO conversations_v2(id, content) VALUES ('twice', 'one'), ('twice', 'other')")
    known = recorded(path)
    assert new_states(path, known) == []
    with base(path) as connection:
        connection.execute("UPDATE conversations_v2 SET content = 'third' WHERE content = 'other'")
    assert [state[1] for state in new_states(path, known)] == ["twice"]


def test_the_name_of_the_graph_is_compared(path):
    fill(path)
    known = recorded(path, graph="y")
    kinds = Counter(state[0] for state in new_states(path, known))
    assert kinds == {"entity": 20, "relationship": 20}, "only these have the name of the graph"


def test_the_bytes_of_new_rows_are_those_of_text_and_embedding(path):
    fill(path)
    known = recorded(path)
    with base(path) as connection:
        connection.execute("INSERT INTO conversations_v2(id, content) VALUES ('1234', repeat('x', 100))")
        connection.execute(f"INSERT INTO reflections_v2(id, content, embedding) VALUES ('12', '☂', {vector('1')})")
    with reading(path, known) as (_, answer):
        assert answer == [82, 2, 104 + 2 + 3 + 4 * 384]
    with reading(path) as (_, answer):
        assert answer[:2] == [82, 82]


# ---------------------------------------------------------------------------------- rows as in the main file


@pytest.fixture
def hashed(monkeypatch):
    """The ranges of rowids of which hashes were made: table, first, last."""
    found, real = [], Comparing._rows

    def recorded_rows(self, table, first, last):
        found.append((table.name.split('"')[1], first, last))
        return real(self, table, first, last)

    monkeypatch.setattr(Comparing, "_rows", recorded_rows)
    return found


def test_with_the_same_main_file_and_no_wal_no_row_is_read(path, hashed):
    fill(path)
    known = recorded(path)
    hashed.clear()
    assert new_states(path, known) == []
    assert hashed == []


def test_with_the_same_main_file_only_ranges_with_changes_are_read(path, hashed):
    fill(path)
    known = recorded(path)
    with wal_of(path) as connection:
        connection.execute("UPDATE conversations_v2 SET access_count = 7")
        connection.execute("INSERT INTO conversations_v2(id, content) VALUES ('new', 'text')")
        connection.execute("DELETE FROM reflections_v2 WHERE id = '9'")
    hashed.clear()
    assert [state[1] for state in new_states(path, known)] == ["new"]
    assert hashed == [("conversations_v2", 20, 23), ("reflections_v2", 8, 11)]
    later = recorded(path)
    hashed.clear()
    assert new_states(path, later) == []
    assert hashed == [("conversations_v2", 20, 23), ("reflections_v2", 8, 11)]


@pytest.mark.parametrize(
    ("statement", "read"),
    [
        ("UPDATE reflections_v2 SET content = 'x' WHERE id = '3'", {"reflections_v2"}),
        ("UPDATE kg_entities SET name = 'x' WHERE id = '3'", {"kg_entities", "kg_relationships"}),
        ("DELETE FROM reflections_v2 WHERE id = '19'", {"reflections_v2"}),
        ("ALTER TABLE conversations_v2 RENAME COLUMN project TO other", set(TABLES)),
        ("ALTER TABLE conversations_v2 ADD COLUMN source_type VARCHAR DEFAULT 'x'", set(TABLES)),
    ],
)
def test_tables_with_changes_are_read(path, hashed, statement, read):
    fill(path)
    known, before = recorded_states(path)
    with wal_of(path) as connection:
        connection.execute(statement)
    hashed.clear()
    found = Counter(new_states(path, known))
    assert {table for table, _, _ in hashed} == read
    assert set(all_states(path)) - set(before) <= set(found)
    with reading(path, known) as (_, _answer):
        hashes = {each for chunk in row_set_file.read(path.with_name("scratch") / ROWS) for each in chunk.split()}
    with base(path):
        pass  # a checkpoint: another main file
    hashed.clear()
    with reading(path, known):
        every = {each for chunk in row_set_file.read(path.with_name("scratch") / ROWS) for each in chunk.split()}
    assert hashes == every
    assert {table for table, _, _ in hashed} == set(TABLES)


def test_tables_that_are_exchanged_in_the_wal_are_read(path):
    fill(path)
    with base(path) as connection:
        connection.execute(
            "CREATE TABLE other AS SELECT * REPLACE ('other ' || content AS content) FROM reflections_v2"
        )
    known = recorded(path)
    with wal_of(path) as connection:
        connection.execute("ALTER TABLE reflections_v2 RENAME TO unused")
        connection.execute("ALTER TABLE other RENAME TO reflections_v2")
    assert len(new_states(path, known)) == 20


def test_rows_that_were_left_out_are_found_although_the_main_file_is_the_same(path):
    fill(path)
    with reading(path) as (read, _):
        read.leave_out([("entity", "3")])
        known = shutil.copy(path.with_name("scratch") / ROWS, path.with_name("recorded.rows"))
    assert [state[:2] for state in new_states(path, known)] == [("entity", "3")]


def test_if_the_layout_is_unknown_all_rows_are_read(path, hashed, monkeypatch):
    fill(path)
    known = recorded(path)

    def fail(*_):
        raise ValueError

    monkeypatch.setattr(comparing, "Stored", fail)
    hashed.clear()
    assert new_states(path, known) == []
    assert {table for table, _, _ in hashed} == set(TABLES)


# -------------------------------------------------------------------------------------------------- row sets


def test_rows_can_be_left_out_of_a_row_set(path):
    fill(path)
    with reading(path) as (read, _):
        read.leave_out([("entity", "3"), ("conversation", "3"), ("conversation", "19"), ("reflection", "unknown")])
        known = shutil.copy(path.with_name("scratch") / ROWS, path.with_name("recorded.rows"))
    assert {state[:2] for state in new_states(path, known)} == {
        ("entity", "3"),
        ("conversation", "3"),
        ("conversation", "19"),
    }


@pytest.mark.parametrize(("left_out", "new"), [(None, []), ([], [("entity", "3"), ("entity", "3")])])
def test_rows_with_equal_ids_are_left_out_of_a_row_set_of_a_server(path, left_out, new):
    fill(path)
    with base(path) as connection:
        connection.execute("INSERT INTO kg_entities(id, name) VALUES ('3', 'Another with this ID')")
    with reading(path) as (read, _):
        read.leave_out(left_out)
        known = shutil.copy(path.with_name("scratch") / ROWS, path.with_name("recorded.rows"))
    assert [state[:2] for state in new_states(path, known)] == new


def test_rows_with_large_texts_are_read_in_groups(path, monkeypatch):
    """DuckDB may decompress 2,048 rows for each statement."""
    fill(path)
    with base(path) as connection:
        connection.execute(
            "INSERT INTO reflections_v2(id, content) SELECT 'large ' || n, repeat('x', 100_000) || n"
            " FROM range(100) r(n)"
        )
    statements, run = [], Engine.all_rows
    monkeypatch.setattr(Engine, "all_rows", lambda self, *given: statements.append(given[0]) or run(self, *given))
    assert len([row_id for _, row_id, _ in all_states(path) if row_id.startswith("large ")]) == 100
    assert len([statement for statement in statements if statement.startswith("SELECT rowid")]) == 3


def test_too_many_rows_are_not_compared(path, monkeypatch):
    fill(path)
    known = recorded(path)
    monkeypatch.setattr(comparing, "MOST_ROWS", 4)
    with reading(path, known) as (read, answer):
        assert answer is None
        assert states(read) == all_states(path)


def test_a_row_set_that_is_invalid_is_not_used(path):
    fill(path)
    known = recorded(path)
    known.write_bytes(known.read_bytes()[:-1])
    with reading(path, known) as (read, answer):
        assert answer is None
        assert len(states(read)) == 80


def test_too_many_differences_make_all_rows_new(path, monkeypatch):
    fill(path)
    known = recorded(path)
    with base(path) as connection:
        connection.execute("UPDATE kg_entities SET name = 'changed ' || id")
    assert len(new_states(path, known)) == 20
    monkeypatch.setattr(comparing, "MOST_DIFFERENT", 19)
    assert len(new_states(path, known)) == 80


def test_ranges_that_do_not_fit_in_memory_are_halved(path, monkeypatch):
    fill(path)
    known, real = recorded(path), Engine.rows
    another_main_file(path)

    def limited(engine, statement, parameters=()):
        if "string_agg" in statement and parameters[2] - parameters[1] > 1:
            raise OutOfMemory
        return real(engine, statement, parameters)

    monkeypatch.setattr(Engine, "rows", limited)
    assert new_states(path, known) == []


def test_without_any_range_that_fits_in_memory_the_rows_are_read_one_by_one(path, monkeypatch):
    fill(path)
    known, real = recorded(path), Engine.rows
    another_main_file(path)

    def limited(engine, statement, parameters=()):
        if "string_agg" in statement:
            raise OutOfMemory
        return real(engine, statement, parameters)

    monkeypatch.setattr(Engine, "rows", limited)
    with reading(path, known) as (read, answer):
        assert answer is None
        assert len(states(read)) == 80


def test_a_table_that_cannot_be_read_is_an_error_at_the_end(path):
    fill(path)
    with base(path) as connection:
        connection.execute("CREATE MACRO host(t) AS t")
    with reading(path) as (read, _):
        read._unread = {"reflections_v2": "it needs an extension"}
        with pytest.raises(Unread, match="it needs an extension"):
            read.leave_out([])
        with pytest.raises(Unread, match="it needs an extension"):
            states(read)


def test_a_database_without_memories_has_an_empty_row_set(path):
    with base(path) as connection:
        connection.execute("CREATE TABLE other(n INTEGER)")
    known = recorded(path)
    assert list(row_set_file.read(known)) == []
    assert new_states(path, known) == []


# ---------------------------------------------------------------------------------------------- any changes


TEXTS = st.sampled_from(["", " ", "a", "b", ":", "1:a", "0:", "a:1:a", '["a", "b"]', '{"a": 1}', "☂", None])
IDS = st.sampled_from(["0", "1", "2", "3", "n", "", None])
EMBEDDINGS = st.sampled_from(["NULL", *(vector(each) for each in ("1", "i", NAN, "NULL"))])
TABLE = st.sampled_from(list(TABLES))


@st.composite
def edits(draw):
    """A statement, its parameters, and whether it stays in the WAL."""
    table = draw(TABLE)
    columns = TABLES[table]
    match draw(st.sampled_from(["insert", "update", "embedding", "delete", "rewrite"])):
        case "insert":
            marks = ", ?" * len(columns)
            statement = (
                f"INSERT INTO {table}(id, {', '.join(columns)}, embedding) VALUES (?{marks}, {draw(EMBEDDINGS)})"
            )
            parameters = [draw(IDS), *(draw(TEXTS) for _ in columns)]
        case "update":
            column = draw(st.sampled_from(["id", *columns]))
            statement, parameters = f"UPDATE {table} SET {column} = ? WHERE id = ?", [draw(TEXTS), draw(IDS)]
        case "embedding":
            statement, parameters = f"UPDATE {table} SET embedding = {draw(EMBEDDINGS)} WHERE id = ?", [draw(IDS)]
        case "delete":
            statement, parameters = f"DELETE FROM {table} WHERE id = ?", [draw(IDS)]
        case _:
            statement, parameters = f"CREATE OR REPLACE TABLE {table} AS FROM {table} ORDER BY id DESC", []
    return statement, parameters, draw(st.booleans())


@settings(max_examples=8)
@given(st.lists(edits(), max_size=4), st.lists(edits(), min_size=1, max_size=4))
def test_the_new_rows_are_those_with_new_digests(tmp_path_factory, earlier, later):
    """Every new state of a row is found, and no row is read that no statement touched."""
    path = tmp_path_factory.mktemp("any") / "knowledge_graph_x.duckdb"
    fill(path, 6)
    apply(path, earlier)
    known, before = recorded_states(path)
    assert new_states(path, known) == []
    apply(path, later)
    after, found = Counter(all_states(path)), Counter(new_states(path, known))
    assert found <= after
    assert set(after) - set(before) <= set(found)
    skipped = after - found
    assert set(skipped) <= set(before), "a row that is not read was recorded in this state"
    touched = sum(1 for statement, _, _ in later if not statement.startswith(("DELETE", "CREATE")))
    assert touched or not found


def apply(path, statements):
    for statement, parameters, wal in statements:
        with wal_of(path) if wal else base(path) as connection:
            connection.execute(statement, parameters)
