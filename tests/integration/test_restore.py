"""Restores with real stores, files and DuckDB: the restored files are those uploaded, or nothing is restored."""

import asyncio
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.restore_directory import RestoreDirectoryFiles
from agent.adapters.s3 import S3Store
from agent.adapters.system_clock import SystemClock
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner
from agent.application.archive.restore import RestoreRequest
from agent.bootstrap.restore import check_destination, finish_restores, open_restore
from agent.domain import naming
from agent.domain.errors import AkoshaError, RestoreError, StoreError
from agent.domain.retention import KeepRules
from agent.settings import Settings
from tests.support.faulty_store import FaultyStore
from tests.support.folder_uploads import SYSTEM, UPLOAD, forge, put, uploaded
from tests.support.machine import Machine
from tests.support.session_buddy import REAL, STATES, WRITERS

pytest_plugins = ["tests.support.servers.fixtures"]

REFLECTION = naming.object_key(SYSTEM, UPLOAD, "reflection.duckdb")
GRAPH = naming.object_key(SYSTEM, UPLOAD, "knowledge_graph.duckdb")
needs_databases = pytest.mark.skipif(not REAL.exists(), reason="the databases of Session-Buddy are missing")


class ByteCounter:
    """A Reporter that counts bytes."""

    def __init__(self):
        self.total = self.done = 0

    def phase(self, _name, total_bytes):
        self.total = total_bytes

    def moved(self, count):
        self.done += count

    def kept(self, count):
        self.done += count


async def restore(store, to, *, upload=UPLOAD, counter=None, **wanted):
    archive = Catalog(store, SYSTEM)
    manifest = await archive.manifest(upload)
    async with open_restore(to, archive) as restoring:
        return await restoring.restore(manifest, RestoreRequest(**wanted), counter or ByteCounter())


def files_in(folder):
    """Return every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tables_of(main: Path) -> dict:
    """Return row count and digest of each table. DuckDB opens the file read-only."""
    import duckdb

    with duckdb.connect(":memory:") as engine:
        engine.execute(f"ATTACH '{main}' AS s (READ_ONLY)")
        names = engine.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 's' ORDER BY 1").fetchall()
        return {
            name: engine.execute(f'SELECT count(*), sum(hash(t))::VARCHAR FROM s."{name}" AS t').fetchone()
            for (name,) in names
        }


@pytest.fixture
def plain(tmp_path):
    """A folder with two files that have names of databases."""
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "reflection.duckdb").write_bytes(os.urandom(70_000))
    (folder / "knowledge_graph.duckdb").write_bytes(bytes(50_000))
    return folder


@pytest.fixture
def store(tmp_path):
    return FaultyStore(DirectoryStore(tmp_path / "bucket"))


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """One data directory with databases in every state that Session-Buddy leaves them in. Four have a WAL."""
    folder = tmp_path_factory.mktemp("states")
    for state, source, name in (
        ("mid", "reflection.duckdb", "reflection.duckdb"),
        ("mid", "knowledge_graph.duckdb", "knowledge_graph.duckdb"),
        ("first", "reflection.duckdb", "knowledge_graph_first.duckdb"),
        ("closed", "reflection.duckdb", "knowledge_graph_closed.duckdb"),
        ("hnsw", "reflection.duckdb", "knowledge_graph_hnsw.duckdb"),
        ("duckdb2", "reflection.duckdb", "knowledge_graph_duckdb2.duckdb"),
    ):
        for suffix in ("", ".wal"):
            if (REAL / state / (source + suffix)).exists():
                shutil.copy(REAL / state / (source + suffix), folder / (name + suffix))
    return folder


@pytest.fixture(scope="module")
def tables(states):
    return {path.name: tables_of(path) for path in states.glob("*.duckdb")}


@asynccontextmanager
async def opened(kind, request, tmp_path):
    if kind == "directory":
        yield DirectoryStore(tmp_path / "bucket")
        return
    server = request.getfixturevalue(kind)
    request.getfixturevalue("aws")
    store = S3Store(bucket=server.new_bucket(), endpoint=server.endpoint, region="auto")
    try:
        yield store
    finally:
        await store.aclose()


@needs_databases
async def test_every_state_is_restored_with_equal_tables_in_one_file_if_duckdb_can_fold_it(
    tmp_path, store, states, tables
):
    to, counter = tmp_path / "to", ByteCounter()
    await uploaded(store, states)
    done = await restore(store, to, counter=counter)
    hnsw = "knowledge_graph_hnsw.duckdb"
    assert sorted(path.name for path in to.iterdir()) == sorted([*tables, f"{hnsw}.wal"])
    assert {path.name: tables_of(path) for path in to.glob("*.duckdb")} == tables
    found = {one.database: one for one in done.databases}
    for database, state in (
        ("reflection", "mid"),
        ("knowledge_graph_first", "first"),
        ("knowledge_graph_duckdb2", "duckdb2"),
    ):
        assert (found[database].folded, found[database].warning) == (True, "")
        rows = found[database].rows["conversations_v2"], found[database].rows["reflections_v2"]
        assert rows == STATES[state].rows[:2]
        assert found[database].storage_version == STATES[state].storage_version
    for name in (hnsw, f"{hnsw}.wal"):
        assert (to / name).read_bytes() == (states / name).read_bytes(), (
            "a database that cannot be folded is restored unchanged"
        )
    assert not found["knowledge_graph_hnsw"].folded
    assert "unknown index type 'HNSW'" in found["knowledge_graph_hnsw"].warning
    assert "DuckDB 1.0 or newer with its extension vss" in found["knowledge_graph_hnsw"].warning
    closed = "knowledge_graph_closed.duckdb"
    assert (to / closed).read_bytes() == (states / closed).read_bytes(), "a database without a WAL is not modified"
    size = sum(path.stat().st_size for path in to.iterdir())
    assert sum(one.size for one in done.databases) == size
    assert counter.done == counter.total <= done.downloaded_bytes, "a WAL that DuckDB has changed is downloaded again"
    assert (to.stat().st_mode & 0o777, (to / closed).stat().st_mode & 0o777) == (0o700, 0o600)


@needs_databases
async def test_the_duckdb_of_session_buddy_opens_and_writes_restored_databases(engine, tmp_path, states, tables):
    store = DirectoryStore(tmp_path / "bucket")
    await uploaded(store, states)
    await restore(store, tmp_path / "to")
    check_with_duckdb(engine, tmp_path / "to", tables)


def check_with_duckdb(version: str, folder: Path, tables: dict) -> None:
    """Open the restored databases with this version of DuckDB, compare the row counts, and write to them."""
    unsupported = {"knowledge_graph_hnsw.duckdb"} | ({"knowledge_graph_duckdb2.duckdb"} if version < "2" else set())
    mains = [path for path in sorted(folder.glob("*.duckdb")) if path.name not in unsupported]
    code = """
import json, sys, duckdb
found = {}
for path in sys.argv[1:]:
    with duckdb.connect(path) as engine:
        names = [name for name, in engine.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        found[path] = {name: engine.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}
        if "conversations_v2" in found[path]:
            engine.execute("INSERT INTO conversations_v2 (id, content, category) VALUES ('new', 'text', 'general')")
            engine.execute("DELETE FROM reflections_v2")
        engine.execute("CHECKPOINT")
    with duckdb.connect(path, read_only=True) as engine:
        if "conversations_v2" in found[path]:
            assert engine.execute("SELECT count(*) FROM conversations_v2 WHERE id = 'new'").fetchone() == (1,)
print(json.dumps([duckdb.__version__, found]))
"""
    command = [sys.executable, "-S", "-c", code, *map(str, mains)]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(WRITERS[version])}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    ran, found = json.loads(done.stdout)
    assert ran == version
    counts = {
        name: {table: count for table, (count, _) in held.items()}
        for name, held in tables.items()
        if name not in unsupported
    }
    assert {Path(path).name: held for path, held in found.items()} == counts


LARGE_DATABASE = """
import os, sys, duckdb
engine = duckdb.connect(sys.argv[1])
engine.execute("SET checkpoint_threshold = '1GB'")
rows = "SELECT range AS id, random() AS value, md5(random()::VARCHAR) AS content FROM range({})"
engine.execute("CREATE TABLE conversations_v2 AS " + rows.format(450_000))
engine.execute("CHECKPOINT")
for count in (150_000, 50_000, 50_000):
    engine.execute("INSERT INTO conversations_v2 " + rows.format(count))
os._exit(0)
"""
"""Write a database and exit before a checkpoint. For bulk inserts, the WAL only refers to blocks of the main file."""


@pytest.mark.long
async def test_a_large_database_with_a_large_wal_is_restored_in_one_file(request, tmp_path):
    folder, to = tmp_path / "data", tmp_path / "to"
    folder.mkdir()
    main = folder / "reflection.duckdb"
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", LARGE_DATABASE, str(main)], check=True, timeout=120)
    assert main.with_name("reflection.duckdb.wal").stat().st_size > 3_000_000
    expected = tables_of(main)
    async with opened("rclone", request, tmp_path) as store:
        manifest = await uploaded(store, folder)
        counter = ByteCounter()
        await restore(store, to, counter=counter)
    assert counter.done == sum(part.stored_size for part in manifest.parts) > 15_000_000
    assert [path.name for path in to.iterdir()] == ["reflection.duckdb"]
    assert tables_of(to / "reflection.duckdb") == expected
    assert expected["conversations_v2"][0] == 700_000


@needs_databases
async def test_raw_files_equal_the_output_of_gunzip(tmp_path, states, store):
    manifest = await uploaded(store, states)
    await restore(store, tmp_path / "to", raw=True)
    for part in manifest.parts:
        with (tmp_path / "bucket" / part.key).open("rb") as stored:
            alone = subprocess.run(["gzip", "-dc"], stdin=stored, capture_output=True)
        assert (tmp_path / "to" / part.name).read_bytes() == alone.stdout
    assert files_in(tmp_path / "to") == files_in(states)


async def test_a_restore_of_one_database_leaves_the_other_unchanged(tmp_path, plain, store):
    await uploaded(store, plain)
    to = tmp_path / "to"
    to.mkdir()
    (to / "knowledge_graph.duckdb").write_bytes(b"in use")
    await restore(store, to, only=["reflection"])
    assert files_in(to) == {
        "reflection.duckdb": (plain / "reflection.duckdb").read_bytes(),
        "knowledge_graph.duckdb": b"in use",
    }


async def test_nothing_is_overwritten_without_force_and_force_keeps_the_old_files_aside(tmp_path, plain, store):
    await uploaded(store, plain)
    to = tmp_path / "to"
    to.mkdir()
    old = {"reflection.duckdb": b"old", "reflection.duckdb.wal": b"old wal"}
    for name, data in old.items():
        (to / name).write_bytes(data)
    with pytest.raises(RestoreError, match=r"nothing is overwritten .*reflection\.duckdb, reflection\.duckdb\.wal"):
        await restore(store, to)
    assert files_in(to) == old
    done = await restore(store, to, force=True)
    found = files_in(to)
    assert {name: found.pop(name) for name in files_in(plain)} == files_in(plain)
    set_aside_names = next(one for one in done.databases if one.database == "reflection").set_aside
    assert {name: found.pop(set_aside_names[name]) for name in old} == old
    assert found == {}


@pytest.mark.parametrize("force", [False, True])
async def test_a_directory_with_an_open_database_is_left_unchanged(tmp_path, plain, store, force):
    await uploaded(store, plain)
    to = tmp_path / "to"
    to.mkdir()
    code = "import fcntl, sys; f = open(sys.argv[1], 'w+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-S", "-c", code, str(to / "knowledge_graph_work.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with pytest.raises(RestoreError, match=rf"process {writer.pid} .*knowledge_graph_work\.duckdb open"):
            await restore(store, to, force=force)
        writer.stdin.close()
    assert files_in(to) == {"knowledge_graph_work.duckdb": b""}
    await restore(store, to)


HOLDING = """
import sys, duckdb
for read_only in (False, True):
    with duckdb.connect(sys.argv[1], read_only=read_only):
        print(flush=True)
        input()
"""


async def test_a_database_that_duckdb_has_open_is_detected_for_writing_and_reading(tmp_path, plain, store):
    await uploaded(store, plain)
    to = tmp_path / "to"
    to.mkdir()
    command = [sys.executable, "-c", HOLDING, str(to / "knowledge_graph_work.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        for _ in ("writes", "reads"):
            await asyncio.to_thread(engine.stdout.readline)
            with pytest.raises(RestoreError, match=rf"process {engine.pid} .*knowledge_graph_work\.duckdb open"):
                await restore(store, to, force=True)
            engine.stdin.write(b"\n")
            engine.stdin.flush()
    assert [path.name for path in to.iterdir()] == ["knowledge_graph_work.duckdb"]
    await restore(store, to)


async def test_a_writer_that_starts_during_the_download_is_detected_before_files_are_moved(tmp_path, plain, store):
    manifest = await uploaded(store, plain)
    archive = Catalog(store, SYSTEM)
    async with open_restore(tmp_path / "to", archive) as restoring:
        unpacker = restoring.unpacker

        class WriterDuringUnpack:
            async def unpack(self, pieces, path, **reported):
                await unpacker.unpack(pieces, path, **reported)
                (tmp_path / "to" / "reflection.duckdb").write_bytes(b"a session began")

        with pytest.raises(RestoreError, match="nothing is overwritten"):
            await replace(restoring, unpacker=WriterDuringUnpack()).restore(manifest, RestoreRequest(), ByteCounter())
    assert files_in(tmp_path / "to") == {"reflection.duckdb": b"a session began"}


def flipped(data):
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: gzip.compress(bytes(2**26)),
        lambda data: gzip.compress(b"another system's"),
    ],
    ids=["one-bit", "cut", "empty", "longer", "bomb", "swapped"],
)
async def test_a_damaged_object_is_refused_and_nothing_is_left(tmp_path, plain, store, damage):
    await uploaded(store, plain)
    data = (tmp_path / "bucket" / REFLECTION).read_bytes()
    await put(store, REFLECTION, damage(data), {})
    with pytest.raises(RestoreError, match=REFLECTION) as caught:
        await restore(store, tmp_path / "to")
    assert "verify" in caught.value.hint
    assert files_in(tmp_path / "to") == {}
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize(
    "reported",
    [
        {"name": "../reflection.duckdb"},
        {"name": "/etc/reflection.duckdb"},
        {"name": "knowledge_graph_/../../x.duckdb", "database": "knowledge_graph_/../../x"},
        {"name": "settings.json"},
        {"key": "systems/other/uploads/20261120_180000_other/knowledge_graph.duckdb"},
        {"key": f"systems/{SYSTEM}/uploads/{UPLOAD}/../../knowledge_graph.duckdb"},
        {"raw_size": -1},
        {"stored_size": -1},
        {"raw_size": 10**15},
        {"raw_size": 10**30, "stored_size": 10**30},
        {"sha256": "0" * 64},
        {"database": "reflection"},
        {"compression": "zstd"},
    ],
    ids=lambda reported: ",".join(f"{name}={str(value)[:24].replace('/', '|')}" for name, value in reported.items()),
)
async def test_an_invalid_manifest_restores_nothing(tmp_path, plain, store, reported):
    manifest = await uploaded(store, plain)
    await forge(store, manifest, **reported)
    before = files_in(tmp_path)
    with pytest.raises(AkoshaError):
        await restore(store, tmp_path / "to")
    assert files_in(tmp_path) == before


async def test_an_upload_that_is_pruned_during_a_restore_is_reported_and_leaves_nothing(tmp_path, plain, store):
    manifest = await uploaded(store, plain)

    class Pruned(FaultyStore):
        async def get(self, key):
            async for piece in super().get(key):
                yield piece
            if key == GRAPH:  # the first of two objects is downloaded
                await self.delete([manifest.key, *manifest.keys])

    with pytest.raises(RestoreError, match=f"{REFLECTION} is missing: .*pruned") as caught:
        await restore(Pruned(store), tmp_path / "to")
    assert "akosha-agent uploads" in caught.value.hint
    assert list((tmp_path / "to").iterdir()) == []


NEWER = f"20261121_180000_{SYSTEM}"


class InterruptedStore(FaultyStore):
    """A store that awaits `happens` once, after the first piece of the object `key` has been read."""

    def __init__(self, store, key, happens):
        super().__init__(store)
        self._key, self._happens = key, happens

    async def get(self, key):
        async for piece in super().get(key):
            yield piece
            if key == self._key and self._happens is not None:
                happens, self._happens = self._happens, None
                await happens()


async def test_an_upload_during_a_restore_does_not_change_the_restored_files(tmp_path, plain, store):
    await uploaded(store, plain)
    other = tmp_path / "other"
    other.mkdir()
    (other / "reflection.duckdb").write_bytes(b"newer")

    async def upload():
        await uploaded(store, other, NEWER)

    done = await restore(InterruptedStore(store, GRAPH, upload), tmp_path / "to")
    assert (done.upload_id, files_in(tmp_path / "to")) == (UPLOAD, files_in(plain))
    assert await Catalog(store, SYSTEM).resolve() == NEWER


@pytest.mark.parametrize("kind", ["directory", "moto"])
@pytest.mark.parametrize("key", [GRAPH, REFLECTION], ids=["the-first-object", "the-last-object"])
async def test_a_prune_during_a_restore_leaves_all_files_or_none(kind, key, request, tmp_path, plain):
    async with opened(kind, request, tmp_path) as store:
        await uploaded(store, plain)
        await uploaded(store, plain, NEWER)
        pruned = []

        async def prune():
            pruning = Pruner(Catalog(store, SYSTEM), KeepRules(last=1, daily=0, weekly=0, monthly=0), SystemClock())
            pruned.append(await pruning.carry_out(await pruning.plan({}), {}))

        try:
            await restore(InterruptedStore(store, key, prune), tmp_path / "to")
        except RestoreError as error:
            assert "pruned" in str(error)  # noqa: PT017 - a success is valid, too: a store may serve an opened object
            assert list((tmp_path / "to").iterdir()) == []
        else:
            assert key == REFLECTION
            assert files_in(tmp_path / "to") == files_in(plain)
        assert [(one.upload_ids, one.error) for one in pruned] == [((UPLOAD,), None)]
        await restore(store, tmp_path / "to2", upload=await Catalog(store, SYSTEM).resolve())
        assert files_in(tmp_path / "to2") == files_in(plain)


async def test_an_interrupted_restore_is_resumed_with_the_downloaded_files(tmp_path, plain, store):
    await uploaded(store, plain)
    store.fail("get", StoreError("503", transient=True), key="reflection.duckdb")
    with pytest.raises(StoreError):
        await restore(store, tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == [f".akosha-restore-{UPLOAD}"]
    store.calls.clear()
    await restore(store, tmp_path / "to")
    assert [key for key in store.keys("get") if "manifest" not in key] == [REFLECTION]
    assert files_in(tmp_path / "to") == files_in(plain)


async def test_a_restore_without_enough_space_fails_at_once_and_names_the_needed_space(
    tmp_path, plain, store, monkeypatch
):
    await uploaded(store, plain)
    monkeypatch.setattr(
        "agent.adapters.restore_directory.directory.RestoreDirectoryFiles.free_bytes", lambda _: 100_000
    )
    with pytest.raises(RestoreError, match=r"has 100,000 bytes free, the restore needs 33,674,432"):
        await restore(store, tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


def newer(data: bytes) -> bytes:
    """Return the main file as if a future version of DuckDB had written it."""
    return data[:12] + (999).to_bytes(8, "little") + data[20:]


@pytest.fixture
def unreadable(tmp_path, plain):
    (plain / "reflection.duckdb").write_bytes(newer(b"\0" * 8 + b"DUCK" + bytes(20_000)))
    (plain / "reflection.duckdb.wal").write_bytes(b"its sidecar")
    return plain


async def test_a_database_that_was_unverified_at_upload_is_restored_unchanged_with_a_warning(
    tmp_path, unreadable, store
):
    await uploaded(store, unreadable, unverified={"reflection": "version number 999"})
    done = await restore(store, tmp_path / "to")
    assert files_in(tmp_path / "to") == files_in(unreadable)
    (found,) = [one for one in done.databases if one.database == "reflection"]
    assert (found.folded, found.files) == (False, ("reflection.duckdb", "reflection.duckdb.wal"))
    assert "as it was uploaded" in found.warning


async def test_a_verified_database_that_cannot_be_folded_is_restored_unchanged_with_a_warning(
    tmp_path, unreadable, store
):
    await uploaded(store, unreadable)
    done = await restore(store, tmp_path / "to")
    assert files_in(tmp_path / "to") == files_in(unreadable)
    (found,) = [one for one in done.databases if one.database == "reflection"]
    assert (found.folded, found.files) == (False, ("reflection.duckdb", "reflection.duckdb.wal"))
    assert "DuckDB cannot" in found.warning
    assert "DuckDB 2.0 or newer opens the files together" in found.warning


async def test_without_an_interrupted_restore_there_is_nothing_to_finish(tmp_path, plain, store):
    assert finish_restores(tmp_path / "nowhere") == ()
    assert not (tmp_path / "nowhere").exists()
    await uploaded(store, plain, gzip=False)
    await restore(store, tmp_path / "to")
    assert finish_restores(tmp_path / "to") == ()
    digests = {hashlib.sha256(data).hexdigest() for data in files_in(tmp_path / "to").values()}
    assert digests == {hashlib.sha256(data).hexdigest() for data in files_in(plain).values()}


@pytest.mark.parametrize("suffixes", [["", ".wal"], [""]], ids=["251 bytes and a WAL", "255 bytes"])
async def test_a_database_with_the_longest_name_is_restored(tmp_path, plain, store, suffixes):
    """The names of its other sidecars would be too long for a file."""
    long = "knowledge_graph_" + "x" * (255 - len("knowledge_graph_.duckdb") - len(suffixes[-1]))
    for suffix in suffixes:
        (plain / f"{long}.duckdb{suffix}").write_bytes(b"a graph" + suffix.encode())
    await uploaded(store, plain)
    await restore(store, tmp_path / "to", raw=True)
    assert files_in(tmp_path / "to") == files_in(plain)


async def test_a_name_too_long_to_be_kept_aside_fails_the_restore_before_files_are_moved(tmp_path, plain, store):
    long = f"knowledge_graph_{'x' * 215}.duckdb"
    (plain / long).write_bytes(b"a graph")
    await uploaded(store, plain)
    to = tmp_path / "to"
    shutil.copytree(plain, to)
    before = files_in(to)
    with pytest.raises(RestoreError, match="too long to be kept aside"):
        await restore(store, to, force=True)
    assert files_in(to) == before


async def interrupt_between_two_moves(store, to, **wanted):
    """Restore while a process opens a database in the directory as soon as the first database is in place."""
    archive = Catalog(store, SYSTEM)

    def opener(_name, _folder):
        return "process 7 (session)" if (to / "knowledge_graph.duckdb").exists() else None

    directory = RestoreDirectoryFiles(to, opener)
    async with open_restore(to, archive) as restoring:
        try:
            with pytest.raises(RestoreError, match=r"process 7 .*may be in place already.*completes it"):
                await replace(restoring, directory=directory).restore(
                    await archive.manifest(UPLOAD), RestoreRequest(**wanted), ByteCounter()
                )
        finally:
            directory.close()
    assert not (to / "reflection.duckdb").exists()


async def test_a_restore_interrupted_between_two_moves_is_completed_by_the_next(tmp_path, plain, store):
    await uploaded(store, plain)
    await interrupt_between_two_moves(store, tmp_path / "to")
    (done,) = finish_restores(tmp_path / "to")
    assert {one.database for one in done.databases} == {"knowledge_graph", "reflection"}
    assert files_in(tmp_path / "to") == files_in(plain)


async def test_finishing_an_interrupted_restore_does_not_satisfy_a_request_for_more_databases(tmp_path, plain):
    machine = Machine(tmp_path / "machine")
    (plain / "knowledge_graph_more.duckdb").write_bytes(b"more")
    store, to = DirectoryStore(machine.bucket), tmp_path / "to"
    await uploaded(store, plain)
    await interrupt_between_two_moves(store, to, only=("reflection", "knowledge_graph"))
    less = await asyncio.to_thread(machine.call, "restore", "--to", str(to))
    assert less.code == 1
    assert "an interrupted restore of knowledge_graph, reflection was finished" in less.err
    assert "nothing is overwritten" in less.err
    assert sorted(files_in(to)) == ["knowledge_graph.duckdb", "reflection.duckdb"]
    shutil.rmtree(to)
    await interrupt_between_two_moves(store, to, only=("reflection", "knowledge_graph"))
    enough = await asyncio.to_thread(machine.call, "restore", "--to", str(to), "--only", "reflection")
    assert (enough.code, enough.err) == (0, "")
    assert enough.out.startswith("restored ")


def test_the_state_directory_and_the_bucket_directory_are_refused_as_destinations(tmp_path):
    state, bucket = tmp_path / "agent" / "state", tmp_path / "nas" / "uploads"
    for directory in (state / "staging", bucket / "systems"):
        directory.mkdir(parents=True)
    (tmp_path / "link").symlink_to(bucket)
    settings = Settings(agent_state_dir=state, cloud_endpoint=bucket.as_uri())
    refused = [state, state / "staging", state / "new", state.parent]
    refused += [bucket, bucket / "systems" / "new", tmp_path / "link"]
    for to in refused:
        with pytest.raises(RestoreError, match=r"belongs to the agent|directory of the uploads") as error:
            check_destination(settings, to)
        assert "--to" in error.value.hint
    for to in (tmp_path, tmp_path / "agent" / "other", bucket.parent, tmp_path / "state"):
        check_destination(settings, to)
