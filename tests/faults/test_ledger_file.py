"""Ledger files that are damaged, of another version, inaccessible or on a full disk: clear errors with a hint."""

import hashlib
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from agent.adapters.sqlite_ledger import SqliteLedger, schema
from agent.adapters.wire import CloudEventsCodec
from agent.application.status_warnings import warnings_in
from agent.bootstrap.home import Home
from agent.domain.delivery_state import State, Target
from agent.domain.errors import LedgerDamaged, StateError
from agent.domain.events import SessionEnded
from agent.ports import HeldMemory, MemoryCounts
from agent.settings import Settings
from tests.support.clock import ManualClock
from tests.support.ledger import downgrade
from tests.support.memories import seen
from tests.support.servers.ledger_process import deliver, opened
from tests.support.values import NOON, SYSTEM, TARGET, skipped, upload_id


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ledger.db"


async def reader(path: Path) -> SqliteLedger:
    return await SqliteLedger.open(path, CloudEventsCodec(), clock=ManualClock(NOON), read_only=True)


async def filled(path: Path, count: int = 3) -> None:
    ledger = await opened(path)
    for number in range(count):
        await deliver(ledger, number)
    await ledger.aclose()


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement)


def tables_broken(data: bytes) -> bytes:
    page = 4096
    return data[:page] + bytes(byte ^ 0x5A for byte in data[page:])


DAMAGE = {
    "text": lambda data: b"this is not a database\n" * 200,
    "header overwritten": lambda data: b"\0" * 100 + data[100:],
    "cut in half": lambda data: data[: len(data) // 2],
    "pages overwritten": tables_broken,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_a_damaged_ledger_is_an_error_and_its_hint_works(path, damage):
    await filled(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match="damaged") as raised:
        await opened(path)
    assert "moves it aside" in raised.value.hint
    assert "only the history is lost" in raised.value.hint
    path.rename(path.with_suffix(".aside"))
    await filled(path)


@pytest.mark.parametrize("damage", ["text", "header overwritten"])
async def test_a_reader_reports_a_damaged_ledger(path, damage):
    await filled(path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(StateError, match="damaged"):
        await reader(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE databases SET parts = '[{}]'",
        "UPDATE databases SET parts = 'nonsense'",
        "UPDATE databases SET rows = '[]'",
        'UPDATE databases SET fingerprint = \'{"files": 5, "header": ""}\'',
        "UPDATE databases SET problem = '{}'",
        "UPDATE targets SET retry_at = 'tomorrow'",
    ],
)
async def test_invalid_content_is_damage(path, statement):
    await filled(path)
    change(path, statement)
    ledger = await opened(path)
    with pytest.raises(StateError, match="damaged") as raised:
        await ledger.record(TARGET)
    assert "moves it aside" in raised.value.hint
    await ledger.aclose()


async def test_an_invalid_time_of_a_success_is_found_when_the_ledger_is_opened(path):
    await filled(path)
    change(path, "UPDATE targets SET last_success = 'yesterday'")
    with pytest.raises(LedgerDamaged):
        await opened(path)


async def test_an_unreadable_result_is_set_aside_and_blocks_no_other(path):
    await filled(path)
    ledger = await opened(path)
    first, damaged, last = await ledger.outbox()
    await ledger.aclose()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE events SET payload = ? WHERE event_id = ?", (b"{}", damaged.id))
    watching = await reader(path)
    assert list(await watching.outbox()) == [first, last], "a reader changes nothing"
    await watching.aclose()
    with capture_logs() as logs:
        for _ in range(2):
            ledger = await opened(path)
            for _ in range(2):
                assert list(await ledger.outbox()) == [first, last]
            await ledger.aclose()
    ((line),) = logs
    assert (line["event"], line["log_level"], line["id"]) == ("result_rejected", "error", damaged.id)
    assert "cannot be read" in line["reason"]


async def test_a_database_does_not_wait_for_a_result_that_was_set_aside(path):
    await filled(path, 1)
    change(path, "UPDATE events SET payload = x'00'")
    ledger = await opened(path)
    assert await ledger.outbox() == []
    assert {entry.state for entry in (await ledger.record(TARGET)).databases.values()} == {State.CLEAN}
    await ledger.aclose()


async def test_an_unknown_state_cannot_be_written(path):
    await filled(path)
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        change(path, "UPDATE databases SET state = 'lost'")


async def test_a_ledger_of_a_newer_version_is_refused_and_not_changed(path):
    await filled(path)
    change(path, f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}", "PRAGMA journal_mode = DELETE")
    before = path.read_bytes()
    for open_it in (opened, reader):
        with pytest.raises(StateError, match="version") as raised:
            await open_it(path)
        assert raised.value.hint == "update akosha-agent"
    assert path.read_bytes() == before


async def test_a_ledger_of_an_earlier_version_is_migrated_with_its_content(path, monkeypatch):
    await filled(path)
    before = await opened(path)
    record, history = await before.record(TARGET), await before.history()
    await before.aclose()
    later = ("ALTER TABLE notes ADD COLUMN noted_at TEXT", "CREATE TABLE more (id TEXT)")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, later))
    monkeypatch.setattr(schema, "READABLE", len(schema.MIGRATIONS))
    with pytest.raises(StateError, match="earlier version"):
        await reader(path)
    after = await opened(path)
    assert (await after.record(TARGET), await after.history()) == (record, history)
    await after.aclose()
    await (await reader(path)).aclose()


TABLES_OF_VERSION_2 = ("targets", "databases", "intents", "events", "notes", "handled")
"""The tables of version 2, which has none for memories."""


def ended(event_id: str) -> SessionEnded:
    return SessionEnded(id=event_id, time=NOON, system_id=SYSTEM)


async def second_version(path: Path) -> None:
    """Create a ledger of version 2 with everything that `filled` writes."""
    new = path.with_suffix(".new")
    await filled(new)
    ledger = await opened(new)
    assert await ledger.accept(ended("e-1"))
    await ledger.aclose()
    steps = [statement for step in schema.MIGRATIONS[:2] for statement in step]
    copies = [f"INSERT INTO {table} SELECT * FROM new.{table}" for table in TABLES_OF_VERSION_2]
    change(path, "PRAGMA journal_mode = WAL", *steps, f"ATTACH '{new}' AS new", *copies, "PRAGMA user_version = 2")
    handled = hashlib.sha256(f"akosha.session.ended.v1\n{SYSTEM}\nby an earlier version".encode()).hexdigest()[:32]
    change(path, f"INSERT INTO handled VALUES (x'{handled}')")


@pytest.mark.parametrize("free", [2**40, 2**20], ids=["room on the disk", "a full disk"])
async def test_a_migration_that_drops_tables_shrinks_the_file_if_the_disk_has_room(path, monkeypatch, free):
    await fourth_version(path)
    change(
        path,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)"
        " INSERT INTO staged_memories SELECT 1, place, zeroblob(500), digest FROM memories, n",
    )
    before = path.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    ledger = await opened(path)
    assert await ledger.memories().counts(SERVER) == MemoryCounts(delivered=1, refused={"x": 1})
    await ledger.aclose()
    assert (path.stat().st_size < before / 4) == (free == 2**40)


async def content(ledger: SqliteLedger) -> tuple[object, ...]:
    return await ledger.record(TARGET), await ledger.history(), await ledger.outbox(), await ledger.notes()


async def test_a_ledger_without_memory_tables_is_migrated_with_its_content(path):
    await second_version(path)
    ledger, current = await opened(path), await opened(path.with_suffix(".new"))
    assert await content(ledger) == await content(current)
    assert not await ledger.accept(ended("e-1"))
    assert not await ledger.accept(ended("by an earlier version"))
    assert await ledger.open_session_ends() == []
    await deliver(ledger, 5)
    await ledger.memories().delivered(TARGET, [seen(1)])
    assert await ledger.memories().counts(TARGET) == MemoryCounts(delivered=1)
    await ledger.aclose()
    await current.aclose()


async def test_a_ledger_without_tables_of_open_puts_has_none_and_is_migrated(path):
    await filled(path)
    downgrade(path, 4)
    watching = await reader(path)
    assert await watching.open_puts(TARGET) == []
    ledger = await opened(path)
    await ledger.put_journal(TARGET, "key").begin("put", "parameters")
    assert [put.key for put in await watching.open_puts(TARGET)] == ["key"]
    await ledger.aclose()
    await watching.aclose()


async def test_a_ledger_without_memory_tables_is_readable_during_its_migration(path):
    await second_version(path)
    before, watching = path.read_bytes(), await reader(path)
    memories, page = watching.memories(), [seen(1), seen(2)]
    assert (await watching.record(TARGET)).known
    assert await memories.counts(TARGET) == MemoryCounts()
    assert (await memories.held(TARGET, limit=9), await memories.bases(TARGET)) == ([], {})
    assert await memories.lacking(TARGET, page) == page
    assert path.read_bytes() == before
    ledger = await opened(path)
    await ledger.memories().delivered(TARGET, page[:1])
    assert await memories.lacking(TARGET, page) == page[1:]
    assert await memories.counts(TARGET) == MemoryCounts(delivered=1)
    with pytest.raises(StateError, match="for reading only"):
        await memories.delivered(TARGET, page)
    await ledger.aclose()
    await watching.aclose()


SERVER = Target("http", "http://127.0.0.1:8682/mcp", "", SYSTEM)
READER = Target("react", "http://127.0.0.1:8682/mcp", "file:///bucket", SYSTEM)


async def fourth_version(path: Path) -> None:
    """Create a ledger of version 4, in which a bucket has its own rows of memories, staged ones, and bases."""
    new = path.with_suffix(".new")
    ledger = await opened(new)
    for target in (TARGET, SERVER):
        await ledger.mark_owed(target, ["reflection"])
    for target in (TARGET, SERVER, READER):
        await ledger.memories().delivered(target, [seen(1)])
    await ledger.memories().hold(SERVER, [HeldMemory(row=seen(2), state="refused", reason="x", since=NOON)])
    await ledger.aclose()
    steps = [statement for step in schema.MIGRATIONS[:4] for statement in step]
    tables = ("targets", "databases", "memory_places", "memories")
    copies = [f"INSERT INTO {table} SELECT * FROM new.{table}" for table in tables]
    staged = (
        f"INSERT INTO staged_uploads VALUES (1, '{TARGET.id}', '{upload_id()}')",
        "INSERT INTO staged_memories SELECT 1, place, id, digest FROM memories LIMIT 1",
        f"INSERT INTO memory_bases VALUES ('{TARGET.id}', 'reflection', '{upload_id()}')",
    )
    change(path, "PRAGMA journal_mode = WAL", *steps, f"ATTACH '{new}' AS new", *copies, *staged)
    change(path, "PRAGMA user_version = 4")


async def test_a_ledger_without_row_sets_is_migrated_a_server_keeps_its_memories_and_a_bucket_has_no_base(path):
    await fourth_version(path)
    watching = await reader(path)
    assert await watching.memories().counts(SERVER) == MemoryCounts(delivered=1, refused={"x": 1})
    assert await watching.memories().bases(TARGET) == {}
    await watching.aclose()
    ledger = await opened(path)
    memories = ledger.memories()
    assert await memories.counts(TARGET) == MemoryCounts()
    assert await memories.counts(SERVER) == MemoryCounts(delivered=1, refused={"x": 1})
    assert await memories.counts(READER) == MemoryCounts(delivered=1)
    assert list((await ledger.record(TARGET)).databases) == ["reflection"]
    for target in (TARGET, SERVER, READER):
        assert await memories.bases(target) == {}
        assert not await memories.known_rows(target, "reflection", path.with_suffix(".rows"))
    await ledger.aclose()


async def test_an_unknown_kind_of_memory_is_damage(path):
    ledger = await opened(path)
    await ledger.memories().delivered(TARGET, [seen(1)])
    change(path, "UPDATE memory_places SET kind = 'dream'")
    with pytest.raises(StateError, match="damaged"):
        await ledger.memories().counts(TARGET)
    await ledger.aclose()


async def test_a_failed_migration_leaves_the_file_unchanged(path, monkeypatch):
    await filled(path)
    with monkeypatch.context() as broken:
        broken.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("CREATE TABLE more (id TEXT)", "nonsense")))
        with pytest.raises(StateError, match="syntax error"):
            await opened(path)
    await filled(path.with_name("other.db"))
    ledger = await opened(path)
    assert (await ledger.record(TARGET)).known
    await ledger.aclose()


async def test_the_file_and_its_sidecars_are_private(path):
    before = os.umask(0)
    try:
        ledger = await opened(path)
        await ledger.note("bus", "memory")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        await ledger.aclose()
    finally:
        os.umask(before)
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}


async def test_a_readable_ledger_is_made_private(path):
    await filled(path)
    path.chmod(0o644)
    await (await opened(path)).aclose()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_every_write_is_synced_to_disk(path):
    ledger = await opened(path)

    def pragmas() -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "fullfsync")
        return [ledger._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert ledger._thread.submit(pragmas).result() == ["wal", 2, 1, 1]
    await ledger.aclose()


@pytest.mark.parametrize("where", ["missing/ledger.db", "."])
async def test_a_path_that_cannot_be_used_is_an_error_with_a_hint(tmp_path, where):
    with pytest.raises(StateError, match="cannot be used") as raised:
        await opened(tmp_path / where)
    assert "state directory" in raised.value.hint


async def test_a_directory_is_not_a_readable_ledger(tmp_path):
    with pytest.raises(StateError, match="no ledger yet"):
        await reader(tmp_path)


async def test_a_directory_that_cannot_be_entered_is_an_error_with_a_hint(tmp_path, monkeypatch):
    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(StateError, match="cannot be used: Permission denied"):
        await reader(tmp_path / "ledger.sqlite")


async def test_a_full_disk_is_a_transient_error_without_a_partial_write(path):
    await filled(path)
    ledger = await opened(path)
    before = await ledger.record(TARGET)

    def limit(pages: int) -> None:
        ledger._thread.submit(lambda: ledger._connection.execute(f"PRAGMA max_page_count = {pages}")).result()

    limit(1)  # SQLite raises the limit to the current size
    databases = [f"knowledge_graph_{number:0100}" for number in range(200)]
    with pytest.raises(StateError, match="disk is full") as raised:
        await ledger.mark_owed(TARGET, databases)
    assert raised.value.transient
    assert await ledger.record(TARGET) == before
    limit(1_000_000)
    await ledger.mark_owed(TARGET, databases)
    await ledger.settle(None, skipped("r9"))
    await ledger.aclose()


def home_of(tmp_path) -> Home:
    home = Home.of(Settings(agent_state_dir=tmp_path / "state", agent_data_dir=tmp_path / "data"))
    home.state.prepare()
    return home


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_the_lock_holder_moves_a_damaged_ledger_aside_and_warns(tmp_path, damage):
    home = home_of(tmp_path)
    path = home.state.ledger_file
    await filled(path)
    spoiled = damage(path.read_bytes())
    path.write_bytes(spoiled)
    path.with_name(f"{path.name}-wal").write_bytes(b"left")
    with pytest.raises(LedgerDamaged):
        await home.open_ledger()
    assert not list(path.parent.glob("*.damaged-*")), "without the lock, nothing is moved"
    with home.lock("test"):
        for _ in range(2):
            ledger = await home.open_ledger()
            (warning,) = warnings_in(await ledger.notes())
            assert not (await ledger.record(TARGET)).known
            await ledger.aclose()
    (aside,) = [each for each in path.parent.glob("*.damaged-*") if not each.name.endswith(("-wal", "-shm"))]
    assert aside.read_bytes()[-1000:] == spoiled[-1000:]
    assert warning.code == "ledger_replaced"
    assert str(aside) in warning.hint
    for each in path.parent.glob("*.damaged-*"):
        each.unlink()
    with home.lock("test"):
        ledger = await home.open_ledger()
        assert warnings_in(await ledger.notes()) == ()
        await ledger.aclose()


async def test_a_ledger_found_damaged_in_use_is_moved_aside_when_the_lock_is_released(tmp_path):
    home = home_of(tmp_path)
    path = home.state.ledger_file
    await filled(path)
    change(path, "UPDATE targets SET retry_at = 'tomorrow'")

    async def used():
        ledger = await home.open_ledger()
        try:
            await ledger.record(TARGET)
        finally:
            await ledger.aclose()

    with pytest.raises(LedgerDamaged), home.lock("test"):
        await used()
    with home.lock("test"):
        await used()
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


@pytest.mark.parametrize("how", [Path.unlink, lambda path: shutil.copy(path, path.with_name("b")).replace(path)])
async def test_a_ledger_that_is_deleted_or_replaced_in_use_is_damaged(path, how):
    """SQLite would go on in a file that no other process opens."""
    ledger = await opened(path)
    how(path)
    for used in (ledger.record(TARGET), ledger.note("bus", "memory")):
        with pytest.raises(LedgerDamaged, match="deleted or replaced while it was in use"):
            await used
    await ledger.aclose()


async def test_a_ledger_of_a_newer_version_is_not_moved_aside(tmp_path):
    home = home_of(tmp_path)
    await filled(home.state.ledger_file)
    change(home.state.ledger_file, f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    with pytest.raises(StateError, match="version"), home.lock("test"):
        await home.open_ledger()
    assert home.state.ledger_file.is_file()
    assert not list(home.state.path.glob("*.damaged-*"))
