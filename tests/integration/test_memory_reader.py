"""Reading memories from copies of databases: the rows, their fields, and the child process."""

import asyncio
import errno
import hashlib
import json
import math
import shutil
import signal
import struct
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import UTC, timedelta, timezone

import pytest

from agent.adapters.duckdb import DuckdbMemoryReader, DuckdbSnapshotTaker, WarmChild, child_process
from agent.adapters.duckdb.child_process import CHILD, IDLE_SECONDS
from agent.adapters.duckdb.child_protocol import PAGE_ROWS
from agent.adapters.duckdb.verification import verify
from agent.adapters.system_clock import SystemClock
from agent.domain.errors import SnapshotError
from tests.fuzz.database_files import Edit, image
from tests.support import zygote
from tests.support.clock import ManualClock
from tests.support.processes import children, open_databases
from tests.support.session_buddy import _GRAPH_TABLES, _REFLECTION_TABLES, REAL, STATES, _opened, create, make

EMBEDDING = "list_transform(range(384), lambda i: i / 384.0)::FLOAT[384]"

needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the databases of Session-Buddy are missing")


@pytest.fixture
def copy(tmp_path):
    return tmp_path / "reflection.duckdb"


@asynccontextmanager
async def source_of(copy, *, zone=UTC, **options):
    async with asyncio.timeout(120), DuckdbMemoryReader(**options).open(copy, copy.stem, zone=zone) as source:
        yield source


async def seen_in(copy):
    """Return the state of all rows of a copy by kind and ID."""
    async with source_of(copy) as source:
        return {(seen.kind, seen.id): seen async for page in source.pages() for seen in page}


async def memories_in(copy, **options):
    """Return all memories of a copy by ID."""
    found = {}
    async with source_of(copy, **options) as source:
        async for page in source.pages():
            assert 0 < len(page) <= PAGE_ROWS
            async for memory in source.read(page):
                found[memory.row.id] = memory
    return found


def bytes_in(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def reading_child():
    """Return the child process that reads, or None if it does not exist."""
    return next(iter(children(CHILD)), None)


# ------------------------------------------------------------------------------------------------------ reading rows


@needs_real_data
@pytest.mark.parametrize("state", STATES)
async def test_databases_of_session_buddy_are_read_in_every_state_and_not_changed(state, tmp_path):
    rows = STATES[state].kinds
    folder = tmp_path / state
    shutil.copytree(REAL / state, folder)
    before = bytes_in(folder)
    found = {}
    for name in ("reflection", "knowledge_graph"):
        async with source_of(folder / f"{name}.duckdb", zone=timezone(timedelta(hours=2))) as source:
            pages = [list(page) async for page in source.pages()]
            second_pass = []
            async for page in source.pages():  # a second pass, which reads the memories too
                second_pass.append(list(page))
                async for memory in source.read(page):
                    found[memory.row.key] = memory
                    assert memory.text.strip()
                    assert memory.created_at.endswith("+02:00")
                    assert (memory.embedding is not None) == memory.row.embedded
                    if memory.embedding:
                        numbers = json.loads(memory.embedding)
                        assert len(numbers) == 384
                        assert math.isclose(sum(number**2 for number in numbers), 1, rel_tol=1e-3)
            assert pages == second_pass
        assert await seen_in(folder / f"{name}.duckdb") == {
            (seen.kind, seen.id): seen for page in pages for seen in page
        }
    counted = dict.fromkeys(rows, (0, 0))
    for memory in found.values():
        seen, embedded = counted[memory.row.kind]
        counted[memory.row.kind] = seen + 1, embedded + memory.row.embedded
    assert counted == rows
    assert not any(
        "-> " in m.text and m.metadata["to_entity"] in m.text for m in found.values() if "to_entity" in m.metadata
    )
    assert bytes_in(folder) == before


WITH_EXTENSION = """
import sys, duckdb
with duckdb.connect(":memory:") as base:
    base.execute("CREATE MACRO host(t) AS t || ''")
    base.execute(f"ATTACH '{sys.argv[1]}' AS s")
    base.execute("CREATE TABLE s.conversations_v2(id VARCHAR, content VARCHAR, "
                 "project VARCHAR GENERATED ALWAYS AS (host(content)))")
    base.execute("CREATE TABLE s.reflections_v2(id VARCHAR, source VARCHAR, "
                 "content VARCHAR GENERATED ALWAYS AS (host(source)))")
    for table in ("conversations_v2", "reflections_v2"):
        base.execute(f"INSERT INTO s.{table} SELECT 'row ' || n, 'text ' || n FROM range(700) rows(n)")
"""
"""Creates a database that uses a function from the extension `inet`, which the file does not contain."""


@pytest.fixture
def needs_extension(copy):
    subprocess.run([sys.executable, "-c", WITH_EXTENSION, str(copy)], check=True, timeout=60)
    return copy


async def test_rows_are_read_except_where_an_extension_is_needed_which_is_named(needs_extension):
    """An optional column is omitted. A table that cannot be read is an error after all others are read."""
    found = []

    async def read():
        async with source_of(needs_extension) as source:
            async for page in source.pages():
                found.extend([memory async for memory in source.read(page)])

    with pytest.raises(SnapshotError, match=r"reflections_v2 \(.*inet extension"):
        await read()
    assert len(found) == 700
    assert {memory.row.kind for memory in found} == {"conversation"}
    assert not any("project" in memory.metadata for memory in found)


async def test_a_copy_that_partly_needs_an_extension_is_unverified_but_readable(needs_extension, tmp_path):
    taker = DuckdbSnapshotTaker(needs_extension.parent, tmp_path / "staging", clock=SystemClock())
    snapshot = await taker.take("reflection")
    assert (snapshot.verified, snapshot.is_readable) == (False, True)
    assert snapshot.rows == {"conversations_v2": 700, "reflections_v2": 700}
    for column in ("conversations_v2.project", "reflections_v2.content"):
        assert column in snapshot.unverified_reason
    assert "inet extension" in snapshot.unverified_reason
    await taker.sweep()


async def test_a_stopped_child_is_killed_after_the_stall_timeout(copy):
    create(copy.parent, commits=3)
    async with source_of(copy) as source:
        source._exchange._stall_seconds = 0.5
        reading_child().send_signal(signal.SIGSTOP)
        with pytest.raises(SnapshotError, match=r"the reader made no progress for 0\.5 s") as caught:
            await anext(source.pages())
    assert caught.value.transient
    assert reading_child() is None


async def test_the_digest_of_a_memory_changes_with_its_content_not_with_access(copy):
    make(
        copy,
        f"INSERT INTO conversations_v2(id, content, category, timestamp, embedding) SELECT n::VARCHAR, 'text ' || n, "
        f"'c', '2026-01-01', if(n = 4, NULL, {EMBEDDING}) FROM range(6) rows(n)",
    )
    before = await seen_in(copy)
    make(
        copy,
        "UPDATE conversations_v2 SET access_count = 9, last_accessed = now()::TIMESTAMP, importance_score = 0.1, "
        "memory_tier = 'x', subcategory = 'y', fingerprint = 'z'::BLOB",
        f"UPDATE conversations_v2 SET embedding = list_transform({EMBEDDING}, lambda x: x + 1) WHERE id = '0'",
    )
    assert await seen_in(copy) == before
    make(
        copy,
        "UPDATE conversations_v2 SET content = 'other' WHERE id = '1'",
        "UPDATE conversations_v2 SET timestamp = '2026-01-02' WHERE id = '2'",
        "UPDATE conversations_v2 SET project = 'p' WHERE id = '3'",
        f"UPDATE conversations_v2 SET embedding = {EMBEDDING} WHERE id = '4'",
    )
    after = await seen_in(copy)
    assert {row_id for (_, row_id), seen in after.items() if seen != before["conversation", row_id]} == set("1234")
    assert after["conversation", "4"].embedded


async def test_columns_may_be_missing_additional_or_of_other_types(copy):
    """Older and newer databases share only names of tables and columns with those of today."""
    vector = "[" + ",".join(["0.5"] * 384) + "]"
    make(
        copy,
        "DROP TABLE reflections_v2",
        "DROP TABLE conversations_v2",
        'CREATE TABLE "Conversations"("ID" INTEGER, "Content" VARCHAR, "timestamp" TIMESTAMPTZ, embedding DOUBLE[], '
        "project ENUM('a', 'b'), novelty STRUCT(x INTEGER), \"at\"\"\" INTEGER)",
        f"""INSERT INTO "Conversations" VALUES (1, 'one', '2026-07-01 09:00:00+02', {vector}, 'a', NULL, 1),
            (2, 'two', 'infinity', NULL, NULL, NULL, 1)""",
        "CREATE TABLE reflections(id UUID, content BLOB, created_at VARCHAR, embedding VARCHAR, tags VARCHAR)",
        f"""INSERT INTO reflections VALUES (uuid(), 'three', '2026-07-01T09:00:00Z', '{vector}', '["x", "y"]'),
            (uuid(), 'four', 'lately', '[1, 2', 'x, y')""",
        "DROP TABLE kg_relationships",
        "DROP TABLE kg_entities",
        "CREATE TABLE kg_entities(id VARCHAR, name VARCHAR, properties MAP(VARCHAR, INTEGER), embedding STRUCT(x INT))",
        "INSERT INTO kg_entities VALUES ('five', 'Ada', MAP {'k': 5}, {'x': 1})",
        "CREATE TABLE kg_relationships(from_entity VARCHAR, to_entity VARCHAR)",
        "INSERT INTO kg_relationships VALUES ('five', 'five')",
        "CREATE SCHEMA other",
        "CREATE TABLE other.kg_relationships(id VARCHAR, from_entity VARCHAR, to_entity VARCHAR)",
        "INSERT INTO other.kg_relationships VALUES ('1', 'five', 'five')",
    )
    found = {memory.text: memory for memory in (await memories_in(copy)).values()}
    assert set(found) == {"one", "two", "three", "four", "Ada"}
    assert (found["one"].row.id, found["one"].created_at) == ("1", "2026-07-01T07:00:00+00:00")
    assert (found["two"].created_at, found["two"].metadata, found["two"].embedding) == (None, {}, None)
    assert json.loads(found["one"].embedding) == json.loads(found["three"].embedding) == [0.5] * 384
    assert (found["three"].created_at, found["three"].metadata) == ("2026-07-01T09:00:00+00:00", {"tags": ["x", "y"]})
    assert (found["four"].created_at, found["four"].embedding) == (None, None)
    assert found["four"].metadata == {"tags": ["x, y"]}
    assert (found["Ada"].metadata, found["Ada"].embedding) == ({"name": "Ada", "properties": {"k": 5}}, None)


async def test_the_newer_of_two_tables_is_read(copy):
    make(
        copy,
        "CREATE TABLE conversations(id VARCHAR, content VARCHAR)",
        "INSERT INTO conversations VALUES ('old', 'text')",
        "INSERT INTO conversations_v2(id, content, category) VALUES ('new', 'text', 'c')",
    )
    assert set(await seen_in(copy)) == {("conversation", "new")}


async def test_an_invalid_embedding_counts_as_none(copy):
    lists = {
        "good": "range(384)",
        "short": "range(383)",
        "long": "range(385)",
        "empty": "[]",
        "none": "NULL",
        "hole": "list_transform(range(384), lambda i: if(i = 7, NULL, i))",
        "nan": "list_transform(range(384), lambda i: if(i = 383, 'nan'::FLOAT, 0.5))",
        "infinite": "list_transform(range(384), lambda i: if(i = 0, '-inf'::FLOAT, if(i = 1, 'inf'::FLOAT, 0.5)))",
        "large": "list_transform(range(384), lambda i: 3e38)",
    }
    make(
        copy,
        "CREATE TABLE conversations(id VARCHAR, content VARCHAR, embedding FLOAT[])",
        "DROP TABLE reflections_v2",
        "DROP TABLE conversations_v2",
        *(f"INSERT INTO conversations VALUES ('{name}', 'text', {numbers})" for name, numbers in lists.items()),
    )
    found = await memories_in(copy)
    assert {name for name, memory in found.items() if memory.embedding} == {"good", "large"}
    assert all((memory.embedding is not None) == memory.row.embedded for memory in found.values())
    assert json.loads(found["good"].embedding) == list(range(384))


async def test_rows_without_id_or_text_are_skipped(copy):
    make(
        copy,
        "DROP TABLE reflections_v2",
        "DROP TABLE conversations_v2",
        "CREATE TABLE conversations(id VARCHAR, content VARCHAR)",
        "INSERT INTO conversations VALUES (NULL, 'a'), ('', 'b'), ('1', NULL), ('2', ''), ('3', e' \\n'), ('4', 'd')",
    )
    assert set(await seen_in(copy)) == {("conversation", "4")}


async def test_rows_of_a_named_graph_have_its_name_and_relationships_name_their_entities(tmp_path):
    copy = tmp_path / "knowledge_graph_my own 'graph'.duckdb"
    plain = tmp_path / "knowledge_graph.duckdb"
    make(
        plain,
        "INSERT INTO kg_entities(id, name, entity_type) VALUES ('a', 'Ada', 'person'), ('b', ' ', 'thing')",
        "INSERT INTO kg_relationships(id, from_entity, to_entity, relation_type) VALUES ('r', 'a', 'b', 'has')",
        "INSERT INTO kg_relationships(id, from_entity, to_entity, relation_type) VALUES ('s', 'gone', 'a', 'is')",
    )
    assert not any("graph" in memory.metadata for memory in (await memories_in(plain)).values())
    shutil.copy(plain, copy)
    found = await memories_in(copy)
    assert {row_id: memory.text for row_id, memory in found.items()} == {
        "a": "Ada (person)", "r": "Ada -has-> b", "s": "gone -is-> Ada",
    }  # fmt: skip
    assert {memory.metadata["graph"] for memory in found.values()} == {"my own 'graph'"}


# --------------------------------------------------------------------------------------------------- large and many


async def test_texts_are_read_unchanged(copy):
    texts = [
        "nul \x00 in it",
        "👩‍💻 \U0001d518 \U0010ffff",
        "\u2028\ufeff\ufffe",
        "\"'\\\t\r\n",
        "x" * 70_000 + "記",
        "é" * 2**20,
    ]
    written = ", ".join(f"('{n}', decode(unhex('{text.encode().hex()}')), 'c')" for n, text in enumerate(texts))
    make(
        copy,
        f"INSERT INTO conversations_v2(id, content, category) VALUES {written}",
        "INSERT INTO kg_entities(id, name, entity_type, properties) "
        """VALUES ('e', 'n', 't', '{"x": "\\ud83d\\ude00"}')""",
    )
    found = await memories_in(copy)
    assert [found[str(n)].text for n in range(len(texts))] == texts
    assert found["e"].metadata["properties"] == {"x": "😀"}


async def test_pages_are_complete_after_deletions(copy):
    make(
        copy,
        "DROP TABLE reflections_v2",
        "DROP TABLE conversations_v2",
        "CREATE TABLE conversations(id VARCHAR, content VARCHAR)",
        "INSERT INTO conversations SELECT n::VARCHAR, 'text' FROM range(30_000) rows(n)",
        "DELETE FROM conversations WHERE id::INT BETWEEN 100 AND 22_999 OR id::INT % 2 = 1",
    )
    expected = {("conversation", str(n)) for n in range(0, 30_000, 2) if not 100 <= n <= 22_999}
    assert set(await seen_in(copy)) == expected


@pytest.mark.long
async def test_many_large_texts_are_read_within_a_memory_limit(copy, monkeypatch):
    """One vector of DuckDB has more data than the memory limit of the child allows."""
    monkeypatch.setenv(
        zygote.EXECUTE, "1"
    )  # the child shares no memory with this process, because its size is measured
    make(
        copy,
        "SET memory_limit = '400MB'",
        "INSERT INTO conversations_v2(id, content, category) SELECT n::VARCHAR, 'text', 'c' FROM range(100) rows(n)",
        *(
            "INSERT INTO conversations_v2(id, content, category) "
            f"SELECT n::VARCHAR, n || repeat('0123456789abcdef', 65536), 'c' FROM range({n}, {n + 10}) rows(n)"
            for n in range(100, 250, 10)
        ),
        "INSERT INTO conversations_v2(id, content, category) SELECT n::VARCHAR, repeat('text', 15_000), 'c' "
        "FROM range(250, 650) rows(n)",
        "RESET memory_limit",
    )
    lengths, most = {}, 0
    async with source_of(copy) as source:
        async for page in source.pages():
            async for memory in source.read(page):
                lengths[memory.row.id] = len(memory.text)
            most = max(most, reading_child().memory_full_info().uss)
    assert lengths == {str(n): 4 if n < 100 else 2**20 + 3 if n < 250 else 60_000 for n in range(650)}
    assert most < 250 * 2**20


async def test_the_texts_of_one_vector_may_need_more_than_the_first_memory_limit(copy):
    """DuckDB 2.0 decompresses the texts of 2,048 rows at once, whichever of them are read."""
    with _opened(copy, _REFLECTION_TABLES + _GRAPH_TABLES, own_storage=True) as base:
        base.execute("SET threads = 1")
        base.execute(
            "INSERT INTO conversations_v2(id, content, category) "
            "SELECT n::VARCHAR, repeat(md5(n::VARCHAR), 1200), 'c' FROM range(2048) rows(n)"
        )
        base.execute("INSERT INTO kg_entities(id, name, entity_type) VALUES ('e', 'Entity', 'type')")
        base.execute(
            "INSERT INTO kg_relationships(id, from_entity, to_entity, relation_type) VALUES ('r', 'e', 'e', 'is')"
        )
    async with source_of(copy) as source:
        compared = await source.compare()
        found = {(seen.kind, seen.id): seen async for page in source.pages() for seen in page}
        await source.row_set([("relationship", "r")])
    assert compared.rows == compared.new_rows == len(found) == 2050
    assert (await verify(copy, timeout_seconds=60)).verified


async def test_rows_are_read_in_the_requested_order(copy):
    make(
        copy,
        "DROP TABLE reflections_v2",
        "INSERT INTO conversations_v2(id, content, category, embedding) "
        f"SELECT n::VARCHAR, 'text', 'c', {EMBEDDING} FROM range(900) rows(n)",
    )
    async with source_of(copy) as source:
        pages = source.pages()
        first = await anext(pages)
        for requested in ([], first[::-7], [first[3]], first[::-1]):
            assert [memory.row async for memory in source.read(requested)] == list(requested)
        async for _ in source.read(first):
            break  # the rest is not requested
        second = await anext(pages)
        assert [memory.row async for memory in source.read(second[5:8])] == list(second[5:8])
        with pytest.raises(KeyError):
            await anext(source.read(first))


# ---------------------------------------------------------------------------------------------------------- failures


async def test_an_unreadable_copy_is_an_error_without_paths(copy):
    create(copy.parent, commits=1)
    data = bytearray(copy.read_bytes())
    for what, message in ((b"x" * 100_000, "not a valid DuckDB"), (bytes(data[:8192]) + b"\0" * 8192, "")):
        copy.write_bytes(what)
        with pytest.raises(SnapshotError, match=f"DuckDB cannot read it: .*{message}") as caught:
            await seen_in(copy)
        assert str(copy.parent) not in str(caught.value)
        assert not caught.value.transient
    struct.pack_into("<Q", data, 12, 999)
    copy.write_bytes(data)
    with pytest.raises(SnapshotError, match="DuckDB cannot read it"):
        await seen_in(copy)
    assert reading_child() is None


async def test_damage_in_a_later_page_is_reported_when_it_is_read(copy):
    make(
        copy,
        "INSERT INTO conversations_v2(id, content, category) "
        "SELECT n::VARCHAR, string_agg(sha256(n || ' ' || m), ''), 'c' "
        "FROM range(9000) r(n), range(20) s(m) GROUP BY n",
    )
    size = copy.stat().st_size
    with copy.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"damage" * 100)
    seen = []

    async def read():
        async with source_of(copy) as source:
            async for page in source.pages():
                seen.extend(page)

    with pytest.raises(SnapshotError, match=r"DuckDB cannot read it: .*checksum") as caught:
        await read()
    assert 0 < len(seen) < 9000
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("number", "message", "transient"),
    [(signal.SIGKILL, r"killed \(SIGKILL\)", True), (signal.SIGSEGV, r"crashed on it \(SIGSEGV\)", False)],
)
async def test_a_child_that_dies_while_reading_is_an_error(number, message, transient, copy):
    make(copy, "INSERT INTO conversations_v2(id, content, category) SELECT n::VARCHAR, 'x', 'c' FROM range(5000) r(n)")
    seen = []

    async def read():
        async with source_of(copy) as source:
            async for page in source.pages():
                seen.extend(page)
                reading_child().send_signal(number)

    with pytest.raises(SnapshotError, match=message) as caught:
        await read()
    assert 0 < len(seen) < 5000
    assert caught.value.transient == transient
    assert reading_child() is None


async def test_a_child_that_does_not_answer_is_an_error_and_is_killed(copy):
    make(copy, "INSERT INTO conversations_v2(id, content, category) SELECT n::VARCHAR, 'x', 'c' FROM range(5000) r(n)")
    async with source_of(copy) as source:
        pages = source.pages()
        first = await anext(pages)
        reading_child().send_signal(signal.SIGSTOP)
        source._exchange._timeout_seconds = 0.5
        with pytest.raises(SnapshotError, match=r"the reader was not done after 0\.5 s") as caught:
            await anext(pages)
        assert caught.value.transient
        with pytest.raises(SnapshotError, match="was interrupted before"):
            await anext(source.read(first))
    assert reading_child() is None


async def test_a_cancelled_reading_leaves_no_child_and_no_file(copy, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    make(copy, f"INSERT INTO conversations_v2(id, content, category, embedding) "
               f"SELECT n::VARCHAR, repeat('text', 300), 'c', {EMBEDDING} FROM range(3000) r(n)")  # fmt: skip
    started = asyncio.Event()

    async def read():
        async with source_of(copy) as source:
            async for page in source.pages():
                async for _ in source.read(page):
                    started.set()

    reading = asyncio.create_task(read())
    await started.wait()
    child = reading_child()
    assert not {"AWS_SECRET_ACCESS_KEY"} & child.environ().keys()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not child.is_running()
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_the_child_ends_with_its_parent(copy):
    make(copy)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", CHILD, str(copy)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    child.communicate(timeout=60)
    assert child.returncode == 3
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


# ------------------------------------------------------------------------------------------- reuse of the child


@pytest.fixture
async def warm():
    warm = WarmChild(SystemClock())
    yield warm
    await warm.end()


@pytest.fixture
def new_taker(tmp_path, warm):
    """Return a function that returns a taker of databases in a directory."""
    return lambda data_dir: DuckdbSnapshotTaker(data_dir, tmp_path / "staging", clock=SystemClock(), warm=warm)


async def read_all(warm, snapshot):
    main = snapshot.folder / snapshot.files[0].name
    async with DuckdbMemoryReader(warm=warm).open(main, snapshot.database, zone=UTC) as source:
        return [row.id async for page in source.pages() for row in page]


async def test_one_child_verifies_and_reads_all_databases_of_an_attempt_and_of_the_next(
    tmp_path, copy, warm, new_taker
):
    create(tmp_path, commits=3, entities=2)
    taker, pids = new_taker(copy.parent), set()
    for _attempt in range(2):
        snapshots = [await taker.take(database) for database in ("reflection", "knowledge_graph")]
        pids.add(reading_child().pid)
        assert [len(await read_all(warm, snapshot)) for snapshot in snapshots] == [6, 3]
        pids.add(reading_child().pid)
        await asyncio.gather(*(taker.discard(snapshot) for snapshot in snapshots))
    assert len(pids) == 1
    await taker.sweep()
    assert reading_child() is None


async def test_the_child_that_verifies_a_copy_is_started_before_the_database_is_copied(tmp_path, copy, new_taker):
    create(tmp_path, commits=3)
    taker = new_taker(copy.parent)
    snapshot = await taker.copy("reflection")
    child = reading_child()
    assert child is not None
    assert (await taker.verify(snapshot)).verified
    assert reading_child() == child


async def test_a_child_that_cannot_be_started_ahead_is_reported_by_the_verification(
    tmp_path, copy, new_taker, monkeypatch
):
    create(tmp_path, commits=3)

    async def refused(*_):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(child_process, "start", refused)
    taker = new_taker(copy.parent)
    snapshot = await taker.verify(await taker.copy("reflection"))
    assert snapshot.unverified_reason == "the verification could not be started: Resource temporarily unavailable"
    assert snapshot.inconclusive


async def test_an_idle_child_has_no_copy_open_that_was_removed_or_read(tmp_path, copy, warm, new_taker):
    create(tmp_path, commits=3)
    taker = new_taker(copy.parent)
    first = await taker.take("reflection")
    assert open_databases(reading_child().pid) == [copy.name]
    await taker.discard(first)
    assert open_databases(reading_child().pid) == []
    second = await taker.take("reflection")
    assert await read_all(warm, second)
    assert open_databases(reading_child().pid) == []


async def test_an_idle_child_ends_after_a_while(tmp_path, copy):
    create(tmp_path, commits=3)
    clock = ManualClock()
    warm = WarmChild(clock)
    taker = DuckdbSnapshotTaker(copy.parent, tmp_path / "staging", clock=clock, warm=warm)
    await taker.take("reflection")
    child = reading_child()
    await clock.advance(IDLE_SECONDS - 1)
    await taker.take("reflection")
    assert reading_child() == child
    await clock.advance(IDLE_SECONDS - 1)
    assert reading_child() == child
    expiry = warm._expiry
    await clock.advance(1)
    await expiry
    assert reading_child() is None


async def test_an_idle_child_that_was_killed_is_replaced(tmp_path, copy, warm, new_taker):
    create(tmp_path, commits=3)
    snapshot = await new_taker(copy.parent).take("reflection")
    warm._idle.kill()
    await warm._idle.wait()
    assert await read_all(warm, snapshot)


async def test_an_idle_child_that_hangs_is_replaced(tmp_path, copy, warm, new_taker, monkeypatch):
    create(tmp_path, commits=3)
    monkeypatch.setattr(child_process, "_CLOSE_SECONDS", 0.1)
    taker = new_taker(copy.parent)
    await taker.take("reflection")
    hanging = reading_child()
    hanging.send_signal(signal.SIGSTOP)
    assert (await taker.take("reflection")).verified
    assert not hanging.is_running()


@pytest.mark.parametrize("end", ["damaged", "error while reading", "stopped while reading", "cancelled"])
async def test_a_child_after_damage_an_error_or_an_interruption_serves_no_other_copy(
    end, tmp_path, copy, warm, new_taker
):
    create(tmp_path, commits=3)
    make(copy, f"INSERT INTO conversations_v2(id, content, category, embedding) "
               f"SELECT n::VARCHAR, repeat('text', 300), 'c', {EMBEDDING} FROM range(3000) r(n)")  # fmt: skip
    taker, reader = new_taker(copy.parent), DuckdbMemoryReader(warm=warm)
    snapshot = await taker.take("reflection")
    before, main = reading_child(), snapshot.folder / copy.name
    match end:
        case "damaged":
            with (copy.parent / copy.name).open("r+b") as file:
                file.seek(300_000)
                file.write(bytes(500_000))
            assert not (await taker.take("reflection")).verified
        case "error while reading":
            async with reader.open(main, "reflection", zone=UTC) as source:
                with pytest.raises(SnapshotError, match="no such command"):
                    await source._ask(b"nonsense", "nothing", bool)
        case "stopped while reading":
            async with reader.open(main, "reflection", zone=UTC) as source:
                await anext(source.pages())
                main.write_bytes(bytes(main.stat().st_size))
        case "cancelled":
            async with reader.open(main, "reflection", zone=UTC) as source:
                asking = asyncio.create_task(anext(source.pages()))
                await asyncio.sleep(0)
                asking.cancel()
                await asyncio.wait({asking})
    if end != "stopped while reading":
        assert not before.is_running()
    create(tmp_path / "other", commits=4)
    other = await new_taker(tmp_path / "other").take("reflection")
    assert (other.verified, other.rows["conversations_v2"]) == (True, 4)


async def test_many_rows_without_memories_are_returned_in_several_pages(copy):
    """Between two responses of the child, the reader yields to other tasks even without memories to return."""
    make(
        copy,
        "INSERT INTO conversations_v2(id, content, category) SELECT n::VARCHAR, '', 'c' FROM range(150_000) rows(n)",
    )
    async with source_of(copy) as source:
        pages = [list(page) async for page in source.pages()]
    assert len(pages) >= 2
    assert not any(pages)


async def test_a_copy_with_a_damaged_index_is_verified_and_read(copy):
    """The verification reads all rows, but no index; so does the reader."""
    block_of_the_index = Edit("bits", 253_953, 1)
    copy.write_bytes(block_of_the_index.apply(image("newer")["reflection.duckdb"]))
    verdict = await verify(copy, timeout_seconds=60)
    assert verdict.verified
    assert len(await memories_in(copy)) == sum(verdict.rows.values())
