"""CloudSync with real databases and a real ledger: what is sent, copied, carried over, adopted and abandoned."""

import asyncio
import gzip
import hashlib
import json
import shutil
import signal
import uuid
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import pytest

from agent.adapters.child_process import Exchange
from agent.adapters.directory_store import DirectoryStore
from agent.adapters.duckdb import DuckdbSnapshotTaker, WarmChild, snapshot_taker
from agent.adapters.duckdb.child_protocol import OPEN, VERIFY
from agent.adapters.duckdb.verification import Verdict
from agent.adapters.system_clock import SystemClock
from agent.application.archive.catalog import Catalog
from agent.application.archive.command_results import CommandResults
from agent.application.archive.prune import Pruner, spared_by, spared_now
from agent.application.archive.restore import RestoreRequest
from agent.application.archive.verify import Verifier
from agent.application.status_warnings import warnings_in
from agent.application.sync import confirmed_upload, subscriber
from agent.bootstrap import agent as agent_bootstrap, home as home_bootstrap, methods
from agent.bootstrap.home import Home
from agent.bootstrap.restore import open_restore
from agent.domain import naming
from agent.domain.delivery_state import removed_while_owed
from agent.domain.errors import CopyUnsupported, NotPermitted, StateError, StoreError, UnreadableObject
from agent.domain.events import SyncAsked, SyncFailed, SyncSkipped, SyncSucceeded, UploadsPruned
from agent.domain.identity import Identity
from agent.domain.manifest import Manifest
from agent.domain.retention import KeepRules
from agent.entrypoints.formatting import sync_summary
from agent.settings import Settings
from tests.support import session_buddy
from tests.support.faulty_store import FaultyStore
from tests.support.memory_source import ListedReader
from tests.support.memory_store import MemoryStore
from tests.support.session_buddy import REAL
from tests.support.waiting import until

IDENTITY = Identity("agent-1", "laptop")
PREFIX = naming.uploads_prefix("laptop")


class Rig:
    """One machine and one in-memory bucket, for single syncs. `memories`: whether the databases have any."""

    def __init__(self, tmp_path: Path, monkeypatch, *, memories: bool = False) -> None:
        self.data, self.tmp_path, self.verify = tmp_path / "data", tmp_path, False
        self.bucket = MemoryStore()
        self.store = FaultyStore(self.bucket)
        monkeypatch.setattr(methods, "object_store", lambda *_, **__: self.store)
        if not memories:  # and copies are not verified: starting child processes takes most of the time
            monkeypatch.setattr(methods, "DuckdbMemoryReader", lambda **_: ListedReader(defaultdict(list)))
            taker = home_bootstrap.DuckdbSnapshotTaker
            monkeypatch.setattr(
                home_bootstrap, "DuckdbSnapshotTaker", lambda *a, **how: taker(*a, verify=self.verify, **how)
            )
        session_buddy.create(self.data, commits=30, entities=6)
        self.settings = {"retry_backoff_seconds": 0.05, "enable_fallback": False}

    def home(self) -> Home:
        settings = Settings(
            cloud_endpoint="file:///bucket",
            agent_data_dir=self.data,
            agent_state_dir=self.tmp_path / "state",
            **self.settings,
        )
        home = Home.of(settings)
        home.state.prepare()
        return home

    async def sync(self, **requested):
        home = self.home()
        ask = SyncAsked(id=str(uuid.uuid4()), time=home.clock.now(), system_id="laptop", **requested)
        async with await agent_bootstrap.build(home, IDENTITY) as agent, asyncio.timeout(60):
            return await agent.once(ask)

    async def record(self):
        home = self.home()
        ledger = await home.open_ledger()
        try:
            return await ledger.record(home.targets(IDENTITY)["cloud"])
        finally:
            await ledger.aclose()

    async def warnings(self):
        ledger = await self.home().open_ledger()
        try:
            return warnings_in(await ledger.notes())
        finally:
            await ledger.aclose()

    async def spared(self):
        ledger = await self.home().open_ledger()
        try:
            return await spared_now(ledger, (await self.record()).target)
        finally:
            await ledger.aclose()

    def commit(self, name: str = "reflection", rows: int = 1) -> None:
        """Change a database as an ended session does: the change is in the main file, not in a WAL."""
        table = {"reflection": "extra", "knowledge_graph": "kg_extra"}[name]
        with session_buddy.opened(self.data / f"{name}.duckdb") as base:
            base.execute(f"CREATE TABLE IF NOT EXISTS {table}(n INTEGER)")
            base.execute(f"INSERT INTO {table} SELECT * FROM range({rows})")

    def change(self, statement: str) -> None:
        """Execute a statement on the reflection database, as an ended session does."""
        with session_buddy.opened(self.data / "reflection.duckdb") as base:
            base.execute(statement)

    def remember(self, name: str) -> None:
        """Add a conversation."""
        self.change(f"INSERT INTO conversations_v2(id, content, category) VALUES ('{name}', 'about {name}', 'general')")

    def memories(self, manifest: Manifest) -> list[str]:
        """Return the IDs of the rows in the upload's memories.json."""
        return [entry["metadata"]["original_id"] for entry in self.entries(manifest)]

    def entries(self, manifest: Manifest) -> list[dict]:
        """Return the entries of the upload's memories.json."""
        data, metadata = self.bucket.objects[manifest.memories.key]
        assert metadata == manifest.memories.metadata
        assert len(data) == manifest.memories.stored_size
        raw = gzip.decompress(data) if manifest.memories.compression == "gzip" else data
        assert len(raw) == manifest.memories.raw_size
        assert hashlib.sha256(raw).hexdigest() == manifest.memories.sha256
        entries = json.loads(raw)["conversations"]
        assert len(entries) == manifest.memories.count
        return entries

    @property
    def objects(self) -> set[str]:
        """The keys of all objects except owner.json."""
        return {*self.bucket.objects} - {naming.owner_key("laptop")}

    @property
    def manifests(self) -> list[Manifest]:
        keys = sorted(key for key in self.bucket.objects if key.endswith("/manifest.json"))
        return [Manifest.decode(self.bucket.objects[key][0]) for key in keys]

    def origins(self, manifest: Manifest) -> dict[str, str]:
        return {part.name: part.origin for part in manifest.parts}

    def assert_complete(self) -> None:
        """Assert that every object of every upload exists and has the size and digest in its manifest."""
        for manifest in self.manifests:
            for item in manifest.objects:
                data, metadata = self.bucket.objects[item.key]
                assert metadata == item.metadata
                assert len(data) == item.stored_size
                raw = gzip.decompress(data) if item.compression == "gzip" else data
                assert (len(raw), hashlib.sha256(raw).hexdigest()) == (item.raw_size, item.sha256)
            if manifest.memories:
                self.entries(manifest)


@pytest.fixture
def rig(tmp_path, monkeypatch):
    return Rig(tmp_path, monkeypatch)


@pytest.fixture
def memory_rig(tmp_path, monkeypatch):
    return Rig(tmp_path, monkeypatch, memories=True)


async def test_the_first_upload_is_complete_and_its_manifest_is_uploaded_last(rig):
    rig.verify = True
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.store.keys("put")[-1] == result.manifest_key
    assert set(result.files_uploaded) == rig.objects
    assert result.database_bytes == sum(file.stat().st_size for file in rig.data.iterdir() if ".duckdb" in file.name)
    (manifest,) = rig.manifests
    assert manifest.memories is None, "the databases have all rows"
    assert rig.origins(manifest) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "sent"}
    assert manifest.rows["reflection"] == {"conversations_v2": 30, "reflections_v2": 30}
    rig.assert_complete()


NO_REQUEST = {"is_available", "aclose"}
"""`is_available` connects and sends nothing."""


@pytest.fixture
def always_checked(monkeypatch):
    """Make each sync that a person requests check the newest upload, as an hour after the last check."""
    monkeypatch.setattr(confirmed_upload, "CONFIRMED_FOR", timedelta(0))


async def test_a_sync_without_a_change_makes_no_request_within_an_hour_after_the_upload(rig):
    await rig.sync()
    calls = len(rig.store.calls)
    result = await rig.sync()
    assert isinstance(result, SyncSkipped)
    assert {call for call, _ in rig.store.calls[calls:]} <= NO_REQUEST


async def test_a_sync_without_a_change_reads_only_the_owner_and_the_newest_upload_an_hour_after_it(rig, monkeypatch):
    first = await rig.sync()
    calls = len(rig.store.calls)
    with monkeypatch.context() as patch:
        patch.setattr(confirmed_upload, "CONFIRMED_FOR", timedelta(0))
        assert isinstance(await rig.sync(), SyncSkipped)
    requested = rig.store.calls[calls:]
    assert {call for call, _ in requested} <= {"is_available", "sweep", "get", "head", "inspect", "aclose"}
    assert [key for call, key in requested if call == "get"] == ["systems/laptop/owner.json", first.manifest_key]
    assert {key for call, key in requested if call == "head"} == {first.manifest_key, *first.files_uploaded}, (
        "is it complete?"
    )
    calls = len(rig.store.calls)
    assert isinstance(await rig.sync(), SyncSkipped)
    assert {call for call, _ in rig.store.calls[calls:]} <= NO_REQUEST, "that check confirms the upload"


async def test_a_directory_is_read_at_most_once_an_hour_and_missing_objects_are_found_each_time(rig, monkeypatch):
    read, inspect = [], DirectoryStore.inspect

    async def counted(self, key, **how):
        read.append(key)
        return await inspect(self, key, **how)

    monkeypatch.setattr(DirectoryStore, "inspect", counted)
    rig.store = DirectoryStore(rig.tmp_path / "bucket")
    first = await rig.sync()
    assert isinstance(await rig.sync(), SyncSkipped)
    assert read == []
    with monkeypatch.context() as patch:
        patch.setattr(confirmed_upload, "CONFIRMED_FOR", timedelta(0))
        assert isinstance(await rig.sync(), SyncSkipped)
    assert f"{PREFIX}{first.upload_id}/reflection.duckdb" in read
    (rig.tmp_path / "bucket" / PREFIX / first.upload_id / "reflection.duckdb").unlink()
    assert (await rig.sync()).repairs == first.upload_id


@pytest.mark.parametrize("age", [timedelta(hours=1), timedelta(seconds=-1)])
async def test_a_confirmation_that_is_old_or_from_the_future_does_not_count(rig, monkeypatch, age):
    await rig.sync()
    now = SystemClock().now()
    monkeypatch.setattr(SystemClock, "now", lambda _: now + age)
    calls = len(rig.store.calls)
    assert isinstance(await rig.sync(), SyncSkipped)
    assert ("get", "systems/laptop/owner.json") in rig.store.calls[calls:]


@pytest.mark.parametrize("options", [{"take_over": True}, {"new_target": True}, {"reason": "session_end"}])
async def test_other_requests_ask_the_store_although_the_upload_was_just_confirmed(rig, options):
    await rig.sync()
    calls = len(rig.store.calls)
    assert isinstance(await rig.sync(**options), SyncSkipped)
    assert ("get", "systems/laptop/owner.json") in rig.store.calls[calls:]


@pytest.mark.parametrize("command", ["verify", "prune"])
async def test_a_sync_checks_the_newest_upload_if_a_command_has_found_it_damaged(rig, command):
    first = await rig.sync()
    data, metadata = rig.bucket.objects[first.files_uploaded[0]]
    rig.bucket.objects[first.files_uploaded[0]] = data[:-1], metadata
    assert isinstance(await rig.sync(), SyncSkipped)
    home = rig.home()
    ledger = await home.open_ledger()
    found = await verified(rig, first.upload_id)
    event = found.event(IDENTITY, home.clock)
    if command == "prune":
        event = UploadsPruned(
            id="p", time=home.clock.now(), system_id="laptop", upload_ids=(), kept=1, objects=0, bytes_freed=0,
            leftovers=0, error="damaged", held=True,
        )  # fmt: skip
    try:
        await CommandResults(home.targets(IDENTITY)["cloud"], ledger, home.clock).record(event)
    finally:
        await ledger.aclose()
    assert isinstance(await rig.sync(), SyncSucceeded)


async def test_an_unchanged_database_is_copied_by_the_store(rig):
    rig.verify = True
    await rig.sync()
    rig.commit("reflection")
    result = await rig.sync()
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "copied", "reflection.duckdb": "sent"}
    newest = rig.manifests[-1]
    assert result.bytes_transferred == newest.of("reflection")[0].stored_size + newest.memories.stored_size
    rig.assert_complete()


async def test_a_touched_file_is_not_a_change(rig):
    await rig.sync()
    for path in rig.data.iterdir():
        path.touch()
    assert isinstance(await rig.sync(), SyncSkipped)
    assert len(rig.manifests) == 1


async def test_without_deduplication_touched_files_are_uploaded_again(rig):
    rig.settings["enable_deduplication"] = False
    await rig.sync()
    for path in rig.data.iterdir():
        path.touch()
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert set(rig.origins(rig.manifests[-1]).values()) == {"sent"}


async def test_without_compression_the_bytes_are_stored_unchanged(rig):
    rig.settings["enable_compression"] = False
    await rig.sync()
    (part,) = rig.manifests[0].of("reflection")
    assert rig.bucket.objects[part.key][0] == (rig.data / "reflection.duckdb").read_bytes()
    assert "compressed" not in json.loads(rig.manifests[0].encode())


async def test_objects_with_another_compression_are_not_reused(rig):
    await rig.sync()
    rig.settings["enable_compression"] = False
    rig.commit("reflection")
    (rig.data / "knowledge_graph.duckdb").touch()
    await rig.sync()
    assert rig.manifests[-1].of("reflection")[0].compression == "none"
    rig.assert_complete()


async def test_a_grown_wal_is_sent_and_its_main_file_is_copied(rig):
    with session_buddy.Writer(rig.data, "--paused") as writer:
        await asyncio.to_thread(writer.run, "commit 2")
        await rig.sync()
        await asyncio.to_thread(writer.run, "commit 2")
        result = await rig.sync()
        assert isinstance(result, SyncSucceeded)
        origins = rig.origins(rig.manifests[-1])
        assert origins["reflection.duckdb.wal"] == "sent"
        assert origins["reflection.duckdb"] == "copied"
        rig.assert_complete()


async def test_without_store_copies_a_staged_file_is_sent_and_an_object_is_downloaded_and_uploaded(rig):
    with session_buddy.Writer(rig.data, "--paused") as writer:
        await asyncio.to_thread(writer.run, "commit 2")
        await rig.sync()
        await asyncio.to_thread(writer.run, "commit 2")
        rig.store.fail("copy", CopyUnsupported("not here"), times=9)
        assert isinstance(await rig.sync(), SyncSucceeded)
        origins = rig.origins(rig.manifests[-1])
        assert origins["reflection.duckdb"] == "sent"
        assert origins["knowledge_graph.duckdb"] == "copied"
        rig.assert_complete()


async def test_a_database_that_was_not_requested_is_carried_over_and_stays_owed(rig):
    await rig.sync()
    rig.commit("reflection")
    rig.commit("knowledge_graph")
    result = await rig.sync(upload_knowledge_graph=False)
    assert isinstance(result, SyncSucceeded)
    (carried,) = rig.manifests[-1].of("knowledge_graph")
    assert (carried.origin, carried.carried_from) == ("carried", rig.manifests[0].upload_id)
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "copied"}
    rig.assert_complete()


async def test_a_database_that_cannot_be_copied_is_carried_over_and_named_in_the_result(rig):
    await rig.sync()
    good = (rig.data / "knowledge_graph.duckdb").read_bytes()
    (rig.data / "knowledge_graph.duckdb").write_bytes(b"garbage" * 4000)
    rig.commit("reflection")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert "knowledge_graph" in result.incomplete
    (carried,) = rig.manifests[-1].of("knowledge_graph")
    assert (carried.origin, carried.carried_from) == ("carried", rig.manifests[0].upload_id)
    (rig.data / "knowledge_graph.duckdb").write_bytes(good)
    again = await rig.sync()
    assert isinstance(again, SyncSkipped), "its bytes are in the newest upload already"
    assert (await rig.record()).databases["knowledge_graph"].problem is None


async def test_a_first_upload_omits_a_database_that_cannot_be_copied(rig):
    (rig.data / "knowledge_graph.duckdb").unlink()
    (rig.data / "knowledge_graph.duckdb").mkdir()
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert list(rig.origins(rig.manifests[0])) == ["reflection.duckdb"]
    assert "knowledge_graph" in rig.manifests[0].incomplete


async def test_a_sync_fails_without_a_target_failure_if_no_database_can_be_copied(rig):
    for name in ("reflection", "knowledge_graph"):
        (rig.data / f"{name}.duckdb").write_bytes(b"")
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "reflection" in result.error
    record = await rig.record()
    assert (record.failures, rig.bucket.objects) == (0, {})


async def test_a_deleted_database_stays_in_later_uploads(rig):
    await rig.sync()
    (rig.data / "knowledge_graph.duckdb").unlink()
    rig.commit("reflection")
    await rig.sync()
    assert rig.origins(rig.manifests[-1])["knowledge_graph.duckdb"] == "carried"
    rig.assert_complete()


async def test_a_graph_with_special_characters_in_its_name_gets_an_ascii_key(rig):
    odd = rig.data / "knowledge_graph_mein Garten ☂.duckdb"
    odd.write_bytes((rig.data / "knowledge_graph.duckdb").read_bytes())
    await rig.sync()
    part = next(part for part in rig.manifests[0].parts if part.name == odd.name)
    assert part.key.isascii()
    assert " " not in part.key
    rig.assert_complete()


async def test_a_lost_ledger_is_restored_from_the_newest_manifest(rig):
    first = await rig.sync()
    for path in (rig.tmp_path / "state").glob("ledger*"):
        path.unlink()
    assert isinstance(await rig.sync(), SyncSkipped)
    assert [manifest.upload_id for manifest in rig.manifests] == [first.upload_id]


async def test_a_lost_ledger_is_restored_despite_an_unreadable_newest_manifest(rig):
    first = await rig.sync()
    for path in (rig.tmp_path / "state").glob("ledger*"):
        path.unlink()
    rig.bucket.objects[f"{PREFIX}20990101_000000_laptop/manifest.json"] = (b"{", {})
    rig.commit("reflection")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert first.upload_id < result.upload_id < "2099"
    assert (
        rig.origins(Manifest.decode(rig.bucket.objects[result.manifest_key][0]))["knowledge_graph.duckdb"] == "copied"
    )


async def test_upload_ids_increase_when_the_clock_goes_back_by_a_day(rig, monkeypatch):
    first = await rig.sync()
    now = home_bootstrap.SystemClock.now
    monkeypatch.setattr(home_bootstrap.SystemClock, "now", lambda self: now(self) - timedelta(days=1))
    rig.commit("reflection")
    second = await rig.sync()
    assert second.upload_id > first.upload_id
    rig.commit("reflection")
    assert (await rig.sync()).upload_id > second.upload_id


async def test_an_object_missing_from_the_bucket_is_sent_again(rig):
    await rig.sync()
    (part,) = rig.manifests[0].of("knowledge_graph")
    del rig.bucket.objects[part.key]
    rig.commit("reflection")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "sent"}
    newest = rig.manifests[-1]
    assert all(part.key in rig.bucket.objects for part in newest.parts)


async def test_a_transient_failure_is_retried_without_sending_an_object_twice(rig):
    rig.store.fail("put", StoreError("503", transient=True), key="reflection.duckdb", times=2)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    graph = f"{PREFIX}{result.upload_id}/knowledge_graph.duckdb"
    assert rig.store.keys("put").count(graph) == 1
    assert len(rig.manifests) == 1


async def test_a_manifest_with_a_lost_response_is_adopted_not_written_again(rig):
    rig.store.fail("put", StoreError("reset", transient=True), key="manifest.json", after=True)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert len(rig.manifests) == 1
    assert sum(key.endswith("manifest.json") for key in rig.store.keys("put")) == 1
    assert (await rig.record()).intent is None


async def test_a_permanent_failure_is_reported_with_its_hint_and_leaves_the_databases_owed(rig):
    rig.store.fail("put", StoreError("403 AccessDenied", hint="allow s3:PutObject"), times=9)
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "allow s3:PutObject" in result.error
    assert result.retry_at is not None
    assert {record.state.value for record in (await rig.record()).databases.values()} == {"owed"}
    assert rig.manifests == []


async def test_a_store_that_does_not_permit_sweeping_does_not_fail_the_sync(rig):
    rig.store.fail("sweep", NotPermitted("s3:ListBucketMultipartUploads", hint="a lifecycle rule"), times=9)
    assert isinstance(await rig.sync(), SyncSucceeded)


@pytest.mark.usefixtures("always_checked")
async def test_own_leftovers_are_deleted_at_once_and_those_of_others_after_a_day(rig, monkeypatch):
    """Another machine may be uploading under the same system ID, so only parts older than a day are abandoned."""
    requested = []

    async def sweep(prefix, *, started_before=None, spared=()):
        requested.append((prefix, started_before and timedelta(hours=23) < rig.home().clock.now() - started_before))
        return 0

    monkeypatch.setattr(rig.bucket, "sweep", sweep)
    rig.store.fail("put", StoreError("403"), key="reflection.duckdb", times=2)
    await rig.sync()
    assert requested == [(PREFIX, True)]
    unfinished = naming.upload_of(next(iter(rig.objects)))
    for change in (lambda: None, rig.commit):  # the upload is resumed; the upload is outdated by a change
        requested.clear()
        change()
        await rig.sync()
        assert requested[:2] == [(f"{PREFIX}{unfinished}/", None), (PREFIX, True)]
    assert {naming.upload_of(key) for key in rig.objects} == {rig.manifests[0].upload_id} != {unfinished}
    requested.clear()
    await rig.sync()
    assert requested == [(PREFIX, True)]


async def test_a_stalled_upload_fails_with_the_name_of_its_timeout_setting(rig):
    rig.settings |= {"upload_timeout_seconds": 1, "max_retries": 0}
    rig.store.stall("put", key="reflection.duckdb", times=9)
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "akosha_upload_timeout_seconds" in result.error


async def test_a_cancelled_upload_leaves_no_manifest_and_no_copy(rig):
    reached = rig.store.stall("put", key="reflection.duckdb")
    task = asyncio.create_task(rig.sync())
    async with asyncio.timeout(60):
        await reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert rig.manifests == []
    assert not any(path.is_file() for path in (rig.tmp_path / "state" / "staging").rglob("*"))
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert len(rig.manifests) == 1


async def test_a_change_during_an_upload_is_part_of_the_next_upload(rig):
    """The snapshot is uploaded. Its fingerprint is older than the change, so the next sync notices the change."""
    rig.verify = True
    reached = rig.store.stall("put", key="manifest.json")
    task = asyncio.create_task(rig.sync())
    async with asyncio.timeout(60):
        await reached.wait()
    rig.commit("reflection")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.manifests[-1].rows["reflection"]["extra"] == 1
    assert isinstance(await rig.sync(), SyncSkipped)


async def test_a_given_up_upload_is_resumed_under_its_id_and_sends_nothing_twice(rig):
    rig.store.fail("put", StoreError("403"), key="reflection.duckdb", times=2)
    assert isinstance(await rig.sync(), SyncFailed)
    assert isinstance(await rig.sync(), SyncFailed)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert {naming.upload_of(key) for key in rig.objects} == {result.upload_id}
    assert sum(key.endswith("knowledge_graph.duckdb") for key in rig.store.keys("put")) == 1


async def test_a_given_up_upload_that_is_outdated_by_a_change_leaves_no_objects(rig):
    rig.store.fail("put", StoreError("403"), key="reflection.duckdb")
    assert isinstance(await rig.sync(), SyncFailed)
    assert rig.objects
    rig.commit("reflection")
    result = await rig.sync()
    assert {naming.upload_of(key) for key in rig.objects} == {result.upload_id}


async def test_without_permission_to_delete_leftovers_stay_and_the_sync_succeeds(rig):
    rig.store.fail("put", StoreError("403"), key="reflection.duckdb")
    assert isinstance(await rig.sync(), SyncFailed)
    rig.commit("reflection")
    rig.store.fail("delete", NotPermitted("403", hint="allow s3:DeleteObject"))
    assert isinstance(await rig.sync(), SyncSucceeded)


async def test_a_manifest_with_a_lost_response_on_the_last_attempt_is_a_success(rig):
    rig.settings["max_retries"] = 0
    rig.store.fail("put", StoreError("reset", transient=True), key="manifest.json", after=True)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert len(rig.manifests) == 1


@pytest.mark.parametrize("name", ["reflection.duckdb", "manifest.json"])
@pytest.mark.usefixtures("always_checked")
async def test_a_manual_sync_sends_again_what_is_damaged_in_the_newest_upload(rig, name):
    """`prune` and `verify` promise it in their output. A sync at a session's end does not inspect the newest upload."""
    await rig.sync()
    (manifest,) = rig.manifests
    key = naming.object_key("laptop", manifest.upload_id, name)
    data, metadata = rig.bucket.objects[key]
    rig.bucket.objects[key] = bytes([data[0] ^ 1]) + data[1:], metadata
    assert isinstance(await rig.sync(reason="session_end"), SyncSkipped)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    sent = {"reflection.duckdb": "sent", "knowledge_graph.duckdb": "copied" if name != "manifest.json" else "sent"}
    newest = Manifest.decode(rig.bucket.objects[result.manifest_key][0])
    assert rig.origins(newest) == sent
    assert (await verified(rig, result.upload_id)).problems == {}
    assert isinstance(await rig.sync(), SyncSkipped)


async def test_a_part_that_is_damaged_in_the_bucket_is_sent_again_not_copied(rig):
    """The store refuses to copy an unexpected object. Downloading and uploading it must not copy the damage either."""
    await rig.sync()
    (part,) = rig.manifests[0].of("knowledge_graph")
    data, metadata = rig.bucket.objects[part.key]
    rig.bucket.objects[part.key] = data[:100], metadata
    rig.commit("reflection")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "sent"}


@pytest.mark.usefixtures("always_checked")
async def test_a_manual_sync_sends_again_what_the_disk_of_the_target_cannot_read(rig):
    await rig.sync()
    unreadable = UnreadableObject("cannot read it: Input/output error", transient=True)
    rig.store.fail("head", unreadable, key="knowledge_graph.duckdb")
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "copied"}


@pytest.mark.usefixtures("always_checked")
async def test_a_manual_sync_sends_everything_again_to_an_emptied_bucket(rig):
    await rig.sync()
    for key in rig.objects:
        del rig.bucket.objects[key]
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert set(rig.origins(rig.manifests[-1]).values()) == {"sent"}
    rig.assert_complete()


async def test_many_missing_objects_cost_one_attempt(rig):
    for name in "abcdef":
        (rig.data / f"knowledge_graph_{name}.duckdb").write_bytes((rig.data / "knowledge_graph.duckdb").read_bytes())
    await rig.sync()
    for key in [key for key in rig.bucket.objects if "knowledge_graph_" in key]:
        del rig.bucket.objects[key]
    rig.commit("reflection")
    rig.settings["max_retries"] = 1
    assert isinstance(await rig.sync(), SyncSucceeded)
    newest = rig.manifests[-1]
    assert all(part.key in rig.bucket.objects for part in newest.parts)


@pytest.mark.parametrize(
    "foreign", ["99991231_235959_X/x", "99991231_235959_laptop/x", "20990101_000000_laptop/manifest.json"]
)
async def test_a_foreign_object_with_an_id_far_ahead_is_ignored_with_a_warning(rig, foreign):
    first = await rig.sync()
    rig.bucket.objects[f"{PREFIX}{foreign}"] = b"{}", {}
    rig.commit("reflection")
    second = await rig.sync()
    assert isinstance(second, SyncSucceeded)
    assert first.upload_id < second.upload_id < "2099"
    (warning,) = await rig.warnings()
    assert warning.code == "foreign_uploads"
    assert foreign.split("/")[0] in warning.message
    rig.commit("reflection")
    assert second.upload_id < (await rig.sync()).upload_id < "2099"
    del rig.bucket.objects[f"{PREFIX}{foreign}"]
    rig.commit("reflection")
    await rig.sync()
    assert await rig.warnings() == ()


async def test_an_upload_id_with_existing_objects_is_not_used(rig, monkeypatch):
    now = home_bootstrap.SystemClock().now().replace(microsecond=0)
    monkeypatch.setattr(home_bootstrap.SystemClock, "now", lambda self: now)
    for second in range(3):
        rig.bucket.objects[f"{PREFIX}{naming.upload_id(now + timedelta(seconds=second), 'laptop')}/x"] = b"", {}
    assert (await rig.sync()).upload_id == naming.upload_id(now + timedelta(seconds=3), "laptop")


async def test_a_clock_that_was_ahead_causes_a_warning_until_the_clock_passes_the_newest_id(rig, monkeypatch):
    now = home_bootstrap.SystemClock.now
    monkeypatch.setattr(home_bootstrap.SystemClock, "now", lambda self: now(self) + timedelta(days=1))
    first = await rig.sync()
    monkeypatch.setattr(home_bootstrap.SystemClock, "now", now)
    rig.commit("reflection")
    second = await rig.sync()
    assert naming.upload_time(second.upload_id) == naming.upload_time(first.upload_id) + timedelta(seconds=1)
    assert [warning.code for warning in await rig.warnings()] == ["upload_id_ahead"]
    monkeypatch.setattr(home_bootstrap.SystemClock, "now", lambda self: now(self) + timedelta(days=2))
    rig.commit("reflection")
    await rig.sync()
    assert await rig.warnings() == ()


async def test_a_sync_raises_the_error_of_a_ledger_that_cannot_be_written(rig, monkeypatch):
    async def full(*_):
        raise StateError("the disk is full", transient=True)

    monkeypatch.setattr(home_bootstrap.SqliteLedger, "begin", full)
    with pytest.raises(StateError, match="the disk is full"):
        await rig.sync()
    assert rig.objects == set(), "nothing is uploaded before the intent is written"


async def test_row_counts_of_an_unverified_database_are_not_taken_from_the_last_upload(rig):
    rig.verify = True
    await rig.sync()
    main = rig.data / "reflection.duckdb"
    data = bytearray(main.read_bytes())
    data[12:20] = (999).to_bytes(8, "little")
    main.write_bytes(data)
    await rig.sync()
    newest = rig.manifests[-1]
    assert not newest.of("reflection")[0].verified
    assert "reflection" not in newest.rows
    assert newest.rows["knowledge_graph"] == rig.manifests[0].rows["knowledge_graph"]
    assert newest.memories is None, "no database in this upload was read"
    assert newest.without_memories == {"reflection": newest.of("reflection")[0].unverified_reason}
    assert isinstance(await rig.sync(), SyncSkipped), "the next verification would find the same"


async def test_an_unreadable_database_is_a_warning_with_its_last_readable_upload_until_a_verified_copy_follows(rig):
    rig.verify = True
    readable = (await rig.sync()).upload_id
    main = rig.data / "knowledge_graph.duckdb"
    intact = main.read_bytes()
    for byte in (b"\x55", b"\x66"):
        main.write_bytes(intact[:12_288] + byte * (len(intact) - 12_288))
        assert sync_summary(await rig.sync()).endswith("; knowledge_graph could not be read by DuckDB")
        (warning,) = await rig.warnings()
        assert (warning.code, warning.message.split(" (")[0]) == (
            "copy_unreadable",
            f"knowledge_graph is unreadable; its last readable copy is in {readable}",
        )
    rig.commit("reflection")
    await rig.sync()
    assert "knowledge_graph is unreadable" in (await rig.warnings())[0].message
    pruning = Pruner(Catalog(rig.bucket, "laptop"), KeepRules(last=1, daily=0, weekly=0, monthly=0), rig.home().clock)
    plan = await pruning.plan(await rig.spared())
    assert plan.kept[readable] == ("last readable copy of knowledge_graph",)
    main.write_bytes(intact)
    await rig.sync()
    assert await rig.warnings() == ()


async def test_an_upload_that_is_adopted_after_a_kill_names_the_databases_that_could_not_be_read(rig, monkeypatch):
    async def killed(*_):
        raise StateError("killed", transient=True)

    rig.verify = True
    main = rig.data / "knowledge_graph.duckdb"
    data = main.read_bytes()
    main.write_bytes(data[:12_288] + b"\x55" * (len(data) - 12_288))
    with monkeypatch.context() as patched:
        patched.setattr(home_bootstrap.SqliteLedger, "deliver", killed)
        with pytest.raises(StateError, match="killed"):
            await rig.sync()
    assert len(rig.manifests) == 1
    await rig.sync()
    assert len(rig.manifests) == 1
    ledger = await rig.home().open_ledger()
    events = [one.event for one in await ledger.history()]
    await ledger.aclose()
    (adopted,) = [event for event in events if isinstance(event, SyncSucceeded)]
    assert adopted.unreadable == ("knowledge_graph",)


async def files_in_bucket(rig) -> None:
    """Wait until the bucket has both main files."""
    await until(lambda: len(rig.objects) == 2)


async def test_files_are_sent_while_their_copies_are_verified_and_the_manifest_waits(rig, monkeypatch):
    verify = DuckdbSnapshotTaker.verify

    async def verify_late(taker, copy):
        await files_in_bucket(rig)
        assert rig.manifests == []
        return await verify(taker, copy)

    monkeypatch.setattr(DuckdbSnapshotTaker, "verify", verify_late)
    rig.verify = True
    assert isinstance(await rig.sync(), SyncSucceeded)
    (manifest,) = rig.manifests
    assert {part.verified for part in manifest.parts} == {True}
    assert manifest.rows.keys() == {"knowledge_graph", "reflection"}


@pytest.mark.parametrize("changed", [True, False])
async def test_a_copy_that_looks_damaged_when_it_was_sent_is_replaced_by_another(rig, monkeypatch, changed):
    """The second copy has other bytes, or the same: then they are not sent again. The result counts all sent bytes."""
    verdicts, sent_early = [], []

    async def torn_once(copy: Path, **_) -> Verdict:
        if verdicts or copy.name != "reflection.duckdb":
            return Verdict(verified=True)
        await files_in_bucket(rig)
        sent_early.extend(len(rig.bucket.objects[key][0]) for key in rig.objects)
        if changed:
            rig.commit()
        verdicts.append(Verdict(verified=False, reason="torn", damaged=True))
        return verdicts[0]

    monkeypatch.setattr(snapshot_taker, "verify", torn_once)
    rig.verify = True
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    (manifest,) = rig.manifests
    sent_late = sum(item.stored_size for item in manifest.objects) if changed else 0
    assert result.bytes_transferred == manifest.bytes_sent == sum(sent_early) + sent_late
    rig.assert_complete()
    assert {part.verified for part in manifest.parts} == {True}
    main = hashlib.sha256((rig.data / "reflection.duckdb").read_bytes()).hexdigest()
    assert [part.sha256 for part in manifest.of("reflection")] == [main]
    assert rig.objects == {manifest.key, *(item.key for item in manifest.objects)}
    assert [key.endswith("/reflection.duckdb") for key in rig.store.keys("put")].count(True) == 1 + changed
    assert not any((rig.tmp_path / "state/staging").iterdir())


async def test_a_copy_that_another_program_deletes_while_it_is_verified_is_made_again(rig, monkeypatch):
    copies = []

    async def deleted_once(copy: Path, **_) -> Verdict:
        await files_in_bucket(rig)
        if not copies:
            shutil.rmtree(copy.parent)
        copies.append(copy)
        return Verdict(verified=True)

    monkeypatch.setattr(snapshot_taker, "verify", deleted_once)
    rig.verify = True
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert len(rig.manifests) == 1
    rig.assert_complete()
    assert len(rig.store.keys("put")) == 3, "the objects are not sent again"


async def test_an_upload_that_fails_while_its_copies_are_verified_leaves_no_copy(memory_rig):
    memory_rig.store.fail("put", StoreError("403"), key="knowledge_graph.duckdb")
    assert isinstance(await memory_rig.sync(), SyncFailed)
    assert not any((memory_rig.tmp_path / "state/staging").iterdir())


def send_to_children(monkeypatch, number: int, *, at: bytes) -> None:
    """Send a signal to each DuckDB child before its first command of this kind."""
    ask = Exchange.ask

    async def signalled(self, command: bytes, *arguments):
        if command.startswith(at):
            self._child.send_signal(number)
        return await ask(self, command, *arguments)

    monkeypatch.setattr(Exchange, "ask", signalled)


@pytest.mark.parametrize(
    ("at", "reason"),
    [(VERIFY, "the verification was killed (SIGKILL)"), (OPEN, "the reader was killed (SIGKILL)")],
    ids=["verification", "reader"],
)
async def test_an_incomplete_upload_is_repeated_once_when_the_killed_process_runs_again(
    memory_rig, monkeypatch, at, reason
):
    """The target has the bytes, so nothing is sent before that. The back-off is over for a person's request."""
    rig = memory_rig
    with monkeypatch.context() as patch:
        send_to_children(patch, signal.SIGKILL, at=at)
        first = await rig.sync()
        assert isinstance(first, SyncSucceeded)
        assert first.incomplete == dict.fromkeys(("knowledge_graph", "reflection"), f"uploaded, but {reason}")
        stored = rig.objects
        for _ in range(2):
            assert reason in (await rig.sync()).error
        assert rig.objects == stored
        problems = [entry.problem for entry in (await rig.record()).databases.values()]
        assert [(problem.failures, bool(problem.retry_at)) for problem in problems] == [(3, True)] * 2
    second = await rig.sync()
    assert isinstance(second, SyncSucceeded)
    newest = rig.manifests[-1]
    assert (second.incomplete, newest.without_memories, newest.memories) == ({}, {}, None)
    assert {(part.verified, part.origin) for part in newest.parts} == {(True, "copied")}
    assert (await rig.sync()).why == "nothing has changed since the last sync"
    assert len(rig.manifests) == 2
    rig.remember("lunch")
    await rig.sync()
    assert rig.manifests[-1].memories.bases == {"reflection": newest.upload_id}
    rig.assert_complete()


async def test_an_incomplete_database_stays_owed_through_the_upload_of_another_one(memory_rig, monkeypatch):
    rig, take = memory_rig, WarmChild.take

    async def killed(warm, copy):
        child = await take(warm, copy)
        if copy.name == "reflection.duckdb":
            child.kill()
        return child

    with monkeypatch.context() as patch:
        patch.setattr(WarmChild, "take", killed)
        first = await rig.sync()
        rig.commit("knowledge_graph")
        second = await rig.sync()
    assert first.incomplete == second.incomplete
    assert list(second.incomplete) == ["reflection"]
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "copied"}
    assert [part.verified for part in rig.manifests[-1].of("reflection")] == [False]
    assert (await rig.sync()).incomplete == {}
    assert {(part.verified, part.origin) for part in rig.manifests[-1].parts} == {(True, "copied")}
    rig.remember("lunch")
    await rig.sync()
    assert rig.manifests[-1].memories.bases == {"reflection": rig.manifests[-2].upload_id}


async def test_an_incomplete_upload_is_repeated_even_if_the_ledger_was_lost(memory_rig, monkeypatch):
    rig = memory_rig
    with monkeypatch.context() as patch:
        send_to_children(patch, signal.SIGKILL, at=VERIFY)
        await rig.sync()
    for path in (rig.tmp_path / "state").glob("ledger*"):
        path.unlink()
    assert (await rig.sync()).incomplete == {}
    assert {part.verified for part in rig.manifests[-1].parts} == {True}
    assert isinstance(await rig.sync(), SyncSkipped)
    assert len(rig.manifests) == 2


async def test_a_database_on_which_duckdb_crashes_is_uploaded_once(memory_rig, monkeypatch):
    send_to_children(monkeypatch, signal.SIGSEGV, at=VERIFY)
    assert (await memory_rig.sync()).incomplete == {}
    assert isinstance(await memory_rig.sync(), SyncSkipped)
    assert {part.verified for part in memory_rig.manifests[0].parts} == {False}


async def test_the_problem_of_a_removed_database_is_deleted(rig):
    odd = rig.data / "knowledge_graph_x.duckdb"
    odd.mkdir()
    await rig.sync()
    assert "knowledge_graph_x" in rig.manifests[0].incomplete
    odd.rmdir()
    assert (await rig.sync()).why == "nothing has changed since the last sync"
    rig.commit("reflection")
    assert (await rig.sync()).incomplete == {}


@pytest.mark.parametrize("how", ["refused", "killed"])
async def test_a_database_removed_before_its_changes_were_uploaded_is_owed_until_a_person_has_read_it(rig, how):
    """Whether the upload failed or was interrupted: the target keeps the earlier state, and a new file is uploaded."""
    await rig.sync()
    rig.commit("reflection")
    if how == "refused":
        rig.store.fail("put", StoreError("403"), key="reflection.duckdb")
        assert isinstance(await rig.sync(), SyncFailed)
    else:
        await cancelled_at(rig, "put", "reflection.duckdb")
    for file in rig.data.glob("reflection.duckdb*"):
        file.rename(rig.tmp_path / file.name)
    assert removed_while_owed(await rig.record(), {}).keys() == {"reflection"}
    said = "removed before their last changes were uploaded, the target keeps an earlier state: reflection"
    assert said in (await rig.sync()).why
    assert removed_while_owed(await rig.record(), {}) == {}
    assert "removed from this machine, kept in the target: reflection" in (await rig.sync()).why
    assert len(rig.manifests) == 1
    for file in rig.tmp_path.glob("reflection.duckdb*"):
        file.rename(rig.data / file.name)
    assert isinstance(await rig.sync(), SyncSucceeded)
    rig.assert_complete()


async def test_a_database_that_was_not_requested_is_named_in_the_first_upload(rig):
    result = await rig.sync(upload_knowledge_graph=False)
    assert list(result.incomplete) == ["knowledge_graph"]


async def test_a_manifest_has_no_path_of_the_machine(rig):
    (rig.data / "knowledge_graph_x.duckdb").symlink_to("/etc/hostname")
    rig.commit("reflection")
    await rig.sync()
    assert str(rig.tmp_path) not in rig.manifests[-1].encode().decode()


@pytest.mark.parametrize("call", ["list", "get"])
def test_a_store_that_hangs_before_the_upload_fails_with_the_upload_timeout(tmp_path, monkeypatch, call):
    async def hang() -> None:
        rig = Rig(tmp_path, monkeypatch)
        await rig.sync()
        rig.commit("reflection")
        rig.settings |= {"upload_timeout_seconds": 1, "max_retries": 0}
        if call == "get":
            rig.store.fail("put", StoreError("403"), key="reflection.duckdb")
            await rig.sync()
        rig.store.stall(call, times=9)
        result = await rig.sync()
        assert "akosha_upload_timeout_seconds" in result.error

    asyncio.run(hang())


async def test_memories_json_has_the_rows_that_are_new_or_changed_since_the_base(memory_rig):
    await memory_rig.sync()
    (first,) = memory_rig.manifests
    assert (first.memories, first.without_memories) == (None, {}), "there is no base"
    memory_rig.remember("lunch")
    memory_rig.change("UPDATE reflections_v2 SET content = 'another' WHERE id = (SELECT min(id) FROM reflections_v2)")
    result = await memory_rig.sync()
    second = memory_rig.manifests[-1]
    assert (second.memories.count, result.memories) == (2, 2)
    assert "lunch" in memory_rig.memories(second)
    assert second.memories.bases == {"reflection": first.upload_id}, "the graph was copied, its rows were not read"
    memory_rig.change("UPDATE conversations_v2 SET access_count = access_count + 1, last_accessed = now()")
    await memory_rig.sync()
    assert memory_rig.origins(memory_rig.manifests[-1])["reflection.duckdb"] == "sent"
    assert memory_rig.memories(memory_rig.manifests[-1]) == [], "reading a memory does not change it"
    assert memory_rig.manifests[-1].memories.bases == {"reflection": second.upload_id}
    memory_rig.assert_complete()


async def test_an_upload_of_which_a_large_part_is_new_has_no_memories_json_and_is_the_next_base(memory_rig):
    await memory_rig.sync()
    memory_rig.change(
        "INSERT INTO conversations_v2(id, content, category)"
        " SELECT 'n' || n, repeat('x', 60_000), 'general' FROM range(500) r(n)"
    )
    await memory_rig.sync()
    assert memory_rig.manifests[-1].memories is None
    memory_rig.remember("lunch")
    await memory_rig.sync()
    assert memory_rig.memories(memory_rig.manifests[-1]) == ["lunch"]
    assert memory_rig.manifests[-1].memories.bases == {"reflection": memory_rig.manifests[-2].upload_id}


async def test_with_ingestion_markers_memories_json_has_all_rows_of_a_database_without_a_base(memory_rig):
    memory_rig.settings["ingestion_markers"] = True
    await memory_rig.sync()
    (first,) = memory_rig.manifests
    assert len(memory_rig.memories(first)) == 30 + 30 + 6 + 5, "conversations, reflections, entities and relationships"
    assert first.memories.bases == {"knowledge_graph": None, "reflection": None}
    memory_rig.remember("lunch")
    await memory_rig.sync()
    assert memory_rig.memories(memory_rig.manifests[-1]) == ["lunch"]
    assert memory_rig.manifests[-1].memories.bases == {"reflection": first.upload_id}
    memory_rig.assert_complete()


@pytest.mark.parametrize("uploads_without", [1, 2], ids=["the rows are in the database", "the rows are compressed"])
async def test_after_ingestion_markers_are_switched_on_the_next_memories_json_has_all_rows(memory_rig, uploads_without):
    """IngestionWorker does not read the earlier uploads: they have no uncompressed memories."""
    for number in range(uploads_without):
        memory_rig.remember(f"breakfast {number}")
        await memory_rig.sync()
    memory_rig.settings["ingestion_markers"] = True
    memory_rig.remember("lunch")
    await memory_rig.sync()
    complete = memory_rig.manifests[-1]
    assert complete.memories.bases == {"reflection": None}
    assert len(memory_rig.memories(complete)) == 30 + 30 + uploads_without + 1
    memory_rig.remember("dinner")
    await memory_rig.sync()
    assert memory_rig.memories(memory_rig.manifests[-1]) == ["dinner"]
    assert memory_rig.manifests[-1].memories.bases == {"reflection": complete.upload_id}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs Session-Buddy's own databases")
async def test_memories_of_session_buddys_own_databases(memory_rig):
    for path in memory_rig.data.iterdir():
        path.unlink()
    shutil.copytree(REAL / "closed", memory_rig.data, dirs_exist_ok=True)
    memory_rig.settings["ingestion_markers"] = True
    await memory_rig.sync()
    entries = memory_rig.entries(memory_rig.manifests[0])
    kinds = [entry["metadata"]["type"] for entry in entries]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "conversation": 200,
        "reflection": 50,
        "entity": 40,
        "relationship": 66,
    }
    assert sum("embedding" in entry for entry in entries) == 187 + 47 + 39
    assert all(len(entry["embedding"]) == 384 for entry in entries if "embedding" in entry)
    assert len({entry["id"] for entry in entries}) == 356
    shutil.copytree(REAL / "mid", memory_rig.data, dirs_exist_ok=True)
    await memory_rig.sync()
    assert memory_rig.manifests[-1].memories.count == 220 + 61 + 40 + 66, "another machine's, some of them in a WAL"
    memory_rig.assert_complete()


async def test_rows_that_cannot_be_read_are_omitted_and_sent_later(memory_rig):
    await memory_rig.sync()
    main = memory_rig.data / "reflection.duckdb"
    good = main.read_bytes()
    main.write_bytes(good[:12] + (999).to_bytes(8, "little") + good[20:])
    memory_rig.commit("knowledge_graph")
    await memory_rig.sync()
    without = memory_rig.manifests[-1]
    assert list(without.memories.bases) == ["knowledge_graph"]
    assert list(without.without_memories) == ["reflection"]
    main.write_bytes(good)
    memory_rig.remember("lunch")
    await memory_rig.sync()
    assert memory_rig.memories(memory_rig.manifests[-1]) == ["lunch"]
    assert memory_rig.manifests[-1].memories.bases == {"reflection": memory_rig.manifests[0].upload_id}


async def cancelled_at(rig, call: str, key: str) -> None:
    reached = rig.store.stall(call, key=key, after=True)
    task = asyncio.create_task(rig.sync())
    async with asyncio.timeout(60):
        await reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_memories_count_as_delivered_if_the_sync_is_cancelled_after_the_manifest(memory_rig):
    await cancelled_at(memory_rig, "put", "manifest.json")
    (first,) = memory_rig.manifests
    memory_rig.remember("lunch")
    await memory_rig.sync()
    assert memory_rig.memories(memory_rig.manifests[-1]) == ["lunch"]
    assert memory_rig.manifests[-1].memories.bases == {"reflection": first.upload_id}


async def test_memories_do_not_count_as_delivered_if_the_sync_is_cancelled_before_the_manifest(memory_rig):
    await memory_rig.sync()
    memory_rig.remember("lunch")
    await cancelled_at(memory_rig, "put", "memories.json.gz")
    assert len(memory_rig.manifests) == 1
    unfinished = memory_rig.store.keys("put")[-1]
    result = await memory_rig.sync()
    assert memory_rig.store.keys("put").count(unfinished) == 1
    assert memory_rig.manifests[-1].memories.key == unfinished
    assert (memory_rig.memories(memory_rig.manifests[-1]), result.memories) == (["lunch"], 1)
    memory_rig.assert_complete()


@pytest.mark.parametrize("markers", [False, True])
async def test_a_resumed_upload_has_its_memories_once_if_their_format_changed_meanwhile(memory_rig, markers):
    """Another version, or `akosha_ingestion_markers`, writes them under another name."""
    await memory_rig.sync()
    memory_rig.remember("lunch")
    memory_rig.settings["ingestion_markers"] = not markers
    await cancelled_at(memory_rig, "put", "/memories.json.gz" if markers else "/memories.json")
    memory_rig.settings["ingestion_markers"] = markers
    assert isinstance(await memory_rig.sync(), SyncSucceeded)
    manifest = memory_rig.manifests[-1]
    assert manifest.memories.key.endswith("/memories.json" if markers else "/memories.json.gz")
    prefix = f"{PREFIX}{manifest.upload_id}/"
    expected = {*manifest.keys, manifest.key} | ({prefix, f"{prefix}/memories.json"} if markers else set())
    assert {key for key in memory_rig.objects if key.startswith(prefix)} == expected
    memory_rig.assert_complete()


async def test_a_resumed_upload_names_the_size_of_the_memories_in_the_bucket(memory_rig):
    """Another zlib may have compressed the same memories to another size."""
    await memory_rig.sync()
    memory_rig.remember("lunch")
    await cancelled_at(memory_rig, "put", "/memories.json.gz")
    key = memory_rig.store.keys("put")[-1]
    data, metadata = memory_rig.bucket.objects[key]
    other = gzip.compress(gzip.decompress(data), 1)
    memory_rig.bucket.objects[key] = other, metadata
    assert isinstance(await memory_rig.sync(), SyncSucceeded)
    manifest = memory_rig.manifests[-1]
    assert (manifest.memories.key, manifest.memories.stored_size) == (key, len(other))
    memory_rig.assert_complete()
    assert (await verified(memory_rig, manifest.upload_id)).whole


async def test_what_an_earlier_attempt_left_may_stay_if_it_cannot_be_removed(memory_rig):
    await memory_rig.sync()
    memory_rig.remember("lunch")
    memory_rig.settings["ingestion_markers"] = True
    await cancelled_at(memory_rig, "put", "/memories.json")
    memory_rig.settings["ingestion_markers"] = False
    memory_rig.store.fail("delete", NotPermitted("403"), times=9)
    assert isinstance(await memory_rig.sync(), SyncSucceeded)
    assert (await verified(memory_rig, memory_rig.manifests[-1].upload_id)).whole


async def test_an_upload_that_is_outdated_by_a_change_delivers_none_of_its_memories(memory_rig):
    await memory_rig.sync()
    memory_rig.remember("lunch")
    await cancelled_at(memory_rig, "put", "memories.json.gz")
    memory_rig.remember("dinner")
    await memory_rig.sync()
    first, second = memory_rig.manifests
    assert memory_rig.memories(second) == ["lunch", "dinner"]
    assert second.memories.bases == {"reflection": first.upload_id}
    assert {naming.upload_of(key) for key in memory_rig.objects} == {first.upload_id, second.upload_id}


async def test_an_upload_fails_if_its_memories_cannot_be_uploaded(rig):
    rig.verify = True
    await rig.sync()
    rig.commit("reflection")
    rig.store.fail("put", StoreError("403"), key="memories.json.gz")
    assert isinstance(await rig.sync(), SyncFailed)
    assert len(rig.manifests) == 1


@pytest.mark.usefixtures("always_checked")
async def test_there_is_no_base_if_the_bucket_is_emptied_or_the_ledger_is_lost(memory_rig):
    """The content of the earlier upload is unknown."""
    await memory_rig.sync()
    for key in memory_rig.objects:
        del memory_rig.bucket.objects[key]
    await memory_rig.sync()
    assert memory_rig.manifests[-1].memories is None
    for path in (memory_rig.tmp_path / "state").glob("ledger*"):
        path.unlink()
    memory_rig.remember("lunch")
    await memory_rig.sync()
    assert memory_rig.manifests[-1].memories is None
    memory_rig.remember("dinner")
    await memory_rig.sync()
    assert memory_rig.memories(memory_rig.manifests[-1]) == ["dinner"]


async def test_ingestion_markers_are_written_after_the_manifest(rig):
    rig.verify = True
    rig.settings["ingestion_markers"] = True
    rig.store.fail("put", StoreError("InvalidArgument: a key cannot end in /"), key="/")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.store.keys("put")[-2:] == [result.manifest_key, "systems/laptop/"]
    rig.commit("reflection")
    second = await rig.sync()
    markers = {f"{PREFIX}{second.upload_id}/", "systems/laptop/", f"{PREFIX}{second.upload_id}//memories.json"}
    assert markers <= rig.bucket.objects.keys()
    assert markers.isdisjoint(second.files_uploaded)
    assert isinstance(await rig.sync(), SyncSkipped)
    rig.assert_complete()


async def test_without_the_setting_there_are_no_markers(rig):
    result = await rig.sync()
    assert rig.objects == {*result.files_uploaded}


async def verified(rig, upload: str):
    return await Verifier(Catalog(rig.bucket, "laptop"), rig.home().clock).shallow(upload)


async def test_a_prune_leaves_the_newest_upload_complete_as_the_base_of_the_next_sync(rig):
    for _ in range(3):
        last = await rig.sync()
        rig.commit("reflection")
    pruning = Pruner(Catalog(rig.bucket, "laptop"), KeepRules(last=1, daily=0, weekly=0, monthly=0), rig.home().clock)
    pruned = await pruning.carry_out(await pruning.plan(spared_by(await rig.record())), {})
    assert (len(pruned.upload_ids), pruned.error) == (2, None)
    assert [manifest.upload_id for manifest in rig.manifests] == [last.upload_id]
    assert (await verified(rig, last.upload_id)).problems == {}
    rig.assert_complete()
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "copied", "reflection.duckdb": "sent"}
    assert (await verified(rig, result.upload_id)).problems == {}
    rig.assert_complete()


async def restored_elsewhere(rig, name: str) -> None:
    """Restore the newest upload to another machine's data directory. The rig is that machine from then on."""
    rig.tmp_path, rig.data = rig.tmp_path / name, rig.tmp_path / name / "data"
    archive = Catalog(rig.bucket, "laptop")
    async with open_restore(rig.data, archive) as restoring:
        await restoring.restore(await archive.manifest(await archive.resolve()), RestoreRequest(), NoReport())


class NoReport:
    def phase(self, _name, _total):
        pass

    def moved(self, _count):
        pass

    def kept(self, _count):
        pass


@pytest.mark.long
async def test_a_replacement_machine_uploads_only_the_folded_database(rig):
    """As in docs/guides/restore.md: a database without a WAL is restored with the bytes that the bucket already has."""
    with session_buddy.Writer(rig.data, "--paused") as writer:
        await asyncio.to_thread(writer.run, "commit 2")
        await rig.sync()
    assert "reflection.duckdb.wal" in rig.origins(rig.manifests[-1])
    await restored_elsewhere(rig, "new")
    assert isinstance(await rig.sync(), SyncFailed), "the old machine may still run"
    result = await rig.sync(take_over=True)
    assert isinstance(result, SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "copied", "reflection.duckdb": "sent"}
    rig.assert_complete()
    await restored_elsewhere(rig, "newest")
    assert isinstance(await rig.sync(take_over=True), SyncSkipped), "no database has a WAL now"
    assert len(rig.manifests) == 2


@pytest.mark.parametrize("compressed", [True, False])
async def test_progress_counts_the_uncompressed_bytes_of_its_total(tmp_path, monkeypatch, compressed):
    phases = []

    class Recorded(subscriber.ProgressReporter):
        def phase(self, name, total_bytes):
            phases.append((name, total_bytes, []))

        def moved(self, count):
            phases[-1][2].append(count)

    monkeypatch.setattr(subscriber, "ProgressReporter", Recorded)
    rig = Rig(tmp_path, monkeypatch, memories=True)
    rig.settings["enable_compression"] = compressed
    sent = await rig.sync()
    name, total, counts = phases[-1]
    assert (name, sum(counts)) == ("upload", total)
    (manifest,) = [
        Manifest.decode(data) for key, (data, _) in rig.bucket.objects.items() if key.endswith("/manifest.json")
    ]
    assert total == sum(part.raw_size for part in manifest.parts)
    assert sent.bytes_transferred == manifest.stored_bytes
    rig.commit()
    await rig.sync()
    assert [name for name, *_ in phases[-2:]] == ["upload", "memories"]
    assert all(sum(counts) == total for _, total, counts in phases[-2:])
