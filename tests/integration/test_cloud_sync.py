"""The cloud method over real databases and a real ledger: what is sent, copied, carried, adopted, abandoned."""

import asyncio
import gzip
import hashlib
import json
import shutil
import uuid
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import pytest

from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner, spared_by
from agent.application.archive.restore import RestoreRequest
from agent.application.archive.verify import Verifier
from agent.application.status_warnings import warnings_in
from agent.bootstrap import agent as agent_bootstrap, home as home_bootstrap, methods
from agent.bootstrap.home import Home
from agent.bootstrap.restore import open_restore
from agent.domain import naming
from agent.domain.errors import CopyUnsupported, NotPermitted, StateError, StoreError
from agent.domain.events import SyncAsked, SyncFailed, SyncSkipped, SyncSucceeded
from agent.domain.identity import Identity
from agent.domain.manifest import Manifest
from agent.domain.retention import KeepRules
from agent.settings import Settings
from tests.support import session_buddy
from tests.support.faulty_store import FaultyStore
from tests.support.memory_source import ListedReader
from tests.support.memory_store import MemoryStore
from tests.support.session_buddy import REAL

IDENTITY = Identity("agent-1", "laptop")
PREFIX = naming.uploads_prefix("laptop")


class Rig:
    """One machine, one bucket in memory, and single syncs over them. `memories`: the databases have any."""

    def __init__(self, tmp_path: Path, monkeypatch, *, memories: bool = False) -> None:
        self.data, self.tmp_path, self.verify = tmp_path / "data", tmp_path, False
        self.kept = MemoryStore()
        self.store = FaultyStore(self.kept)
        monkeypatch.setattr(methods, "object_store", lambda *_, **__: self.store)
        if not memories:  # then neither is a copy read through: children that start take most of the time
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

    async def sync(self, **asked):
        home = self.home()
        ask = SyncAsked(id=str(uuid.uuid4()), time=home.clock.now(), system_id="laptop", **asked)
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

    def commit(self, name: str = "reflection", rows: int = 1) -> None:
        """Change a database as a session does that has ended: into the main file."""
        table = {"reflection": "extra", "knowledge_graph": "kg_extra"}[name]
        with session_buddy._opened(self.data / f"{name}.duckdb", ()) as base:
            base.execute(f"CREATE TABLE IF NOT EXISTS {table}(n INTEGER)")
            base.execute(f"INSERT INTO {table} SELECT * FROM range({rows})")

    def change(self, statement: str) -> None:
        """Change the rows of reflections, as a session does that has ended."""
        with session_buddy._opened(self.data / "reflection.duckdb", ()) as base:
            base.execute(statement)

    def remember(self, name: str) -> None:
        """Add a conversation."""
        self.change(f"INSERT INTO conversations_v2(id, content, category) VALUES ('{name}', 'about {name}', 'general')")

    def memories(self, manifest: Manifest) -> list[str]:
        """Return the ids of the rows in the upload's memories.json."""
        entries = json.loads(self.kept.objects[manifest.memories.key][0])["conversations"]
        return [entry["metadata"]["original_id"] for entry in entries]

    @property
    def objects(self) -> set[str]:
        """The keys of all that is of uploads, or beside them: what remains without owner.json."""
        return {*self.kept.objects} - {naming.owner_key("laptop")}

    @property
    def manifests(self) -> list[Manifest]:
        keys = sorted(key for key in self.kept.objects if key.endswith("/manifest.json"))
        return [Manifest.decode(self.kept.objects[key][0]) for key in keys]

    def origins(self, manifest: Manifest) -> dict[str, str]:
        return {part.name: part.origin for part in manifest.parts}

    def assert_whole(self) -> None:
        """Every part of every upload is there, and is the bytes its manifest names."""
        for manifest in self.manifests:
            if manifest.memories:
                data, metadata = self.kept.objects[manifest.memories.key]
                assert metadata == manifest.memories.metadata
                assert hashlib.sha256(data).hexdigest() == manifest.memories.sha256
                assert len(data) == manifest.memories.size
                assert len(json.loads(data)["conversations"]) == manifest.memories.count
            for part in manifest.parts:
                data, metadata = self.kept.objects[part.key]
                assert metadata == part.metadata
                assert len(data) == part.stored_size
                raw = gzip.decompress(data) if part.compression == "gzip" else data
                assert (len(raw), hashlib.sha256(raw).hexdigest()) == (part.raw_size, part.sha256)


@pytest.fixture
def rig(tmp_path, monkeypatch):
    return Rig(tmp_path, monkeypatch)


@pytest.fixture
def remembering(tmp_path, monkeypatch):
    return Rig(tmp_path, monkeypatch, memories=True)


async def test_the_first_upload_is_whole_and_its_manifest_came_last(rig):
    rig.verify = True
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    memories, last = rig.store.keys("put")[-2:]
    assert (memories, last) == (rig.manifests[0].memories.key, result.manifest_key)
    assert set(result.files_uploaded) == rig.objects
    (manifest,) = rig.manifests
    assert rig.origins(manifest) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "sent"}
    assert manifest.rows["reflection"] == {"conversations_v2": 30, "reflections_v2": 30}
    rig.assert_whole()


async def test_a_second_sync_without_a_change_sends_nothing_and_asks_for_owner_newest_upload_and_leftovers(rig):
    first = await rig.sync()
    calls = len(rig.store.calls)
    result = await rig.sync()
    assert isinstance(result, SyncSkipped)
    asked = rig.store.calls[calls:]
    assert {call for call, _ in asked} <= {"is_available", "sweep", "get", "head", "inspect", "aclose"}
    assert [key for call, key in asked if call == "get"] == ["systems/laptop/owner.json", first.manifest_key]
    assert {key for call, key in asked if call == "head"} == {first.manifest_key, *first.files_uploaded}, "is it whole?"


async def test_an_unchanged_database_is_copied_by_the_store(rig):
    rig.verify = True
    await rig.sync()
    rig.commit("reflection")
    result = await rig.sync()
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "copied", "reflection.duckdb": "sent"}
    newest = rig.manifests[-1]
    assert result.bytes_transferred == newest.of("reflection")[0].stored_size + newest.memories.size
    rig.assert_whole()


async def test_touched_files_are_no_change(rig):
    await rig.sync()
    for path in rig.data.iterdir():
        path.touch()
    assert isinstance(await rig.sync(), SyncSkipped)
    assert len(rig.manifests) == 1


async def test_without_deduplication_everything_that_was_touched_is_sent_again(rig):
    rig.settings["enable_deduplication"] = False
    await rig.sync()
    for path in rig.data.iterdir():
        path.touch()
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert set(rig.origins(rig.manifests[-1]).values()) == {"sent"}


async def test_without_compression_the_bytes_are_stored_as_they_are(rig):
    rig.settings["enable_compression"] = False
    await rig.sync()
    (part,) = rig.manifests[0].of("reflection")
    assert rig.kept.objects[part.key][0] == (rig.data / "reflection.duckdb").read_bytes()
    assert "compressed" not in json.loads(rig.manifests[0].encode())


async def test_files_stored_under_another_compression_are_not_reused(rig):
    await rig.sync()
    rig.settings["enable_compression"] = False
    rig.commit("reflection")
    (rig.data / "knowledge_graph.duckdb").touch()
    await rig.sync()
    assert rig.manifests[-1].of("reflection")[0].compression == "none"
    rig.assert_whole()


async def test_a_wal_that_grew_is_sent_and_the_main_file_beside_it_copied(rig):
    with session_buddy.Writer(rig.data, "--paused") as writer:
        await asyncio.to_thread(writer.run, "commit 2")
        await rig.sync()
        await asyncio.to_thread(writer.run, "commit 2")
        result = await rig.sync()
        assert isinstance(result, SyncSucceeded)
        origins = rig.origins(rig.manifests[-1])
        assert origins["reflection.duckdb.wal"] == "sent"
        assert origins["reflection.duckdb"] == "copied"
        rig.assert_whole()


async def test_where_the_store_cannot_copy_a_staged_file_is_sent_and_another_comes_through_here(rig):
    with session_buddy.Writer(rig.data, "--paused") as writer:
        await asyncio.to_thread(writer.run, "commit 2")
        await rig.sync()
        await asyncio.to_thread(writer.run, "commit 2")
        rig.store.fail("copy", CopyUnsupported("not here"), times=9)
        assert isinstance(await rig.sync(), SyncSucceeded)
        origins = rig.origins(rig.manifests[-1])
        assert origins["reflection.duckdb"] == "sent"
        assert origins["knowledge_graph.duckdb"] == "copied"
        rig.assert_whole()


async def test_a_database_that_was_not_asked_for_is_carried_over_and_stays_owed(rig):
    await rig.sync()
    rig.commit("reflection")
    rig.commit("knowledge_graph")
    result = await rig.sync(upload_knowledge_graph=False)
    assert isinstance(result, SyncSucceeded)
    (carried,) = rig.manifests[-1].of("knowledge_graph")
    assert (carried.origin, carried.carried_from) == ("carried", rig.manifests[0].upload_id)
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "copied"}
    rig.assert_whole()


async def test_a_database_that_cannot_be_copied_is_carried_over_and_the_result_says_so(rig):
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


async def test_a_first_upload_goes_without_a_database_that_cannot_be_copied(rig):
    (rig.data / "knowledge_graph.duckdb").unlink()
    (rig.data / "knowledge_graph.duckdb").mkdir()
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert list(rig.origins(rig.manifests[0])) == ["reflection.duckdb"]
    assert "knowledge_graph" in rig.manifests[0].incomplete


async def test_when_nothing_can_be_copied_the_sync_fails_for_the_sources_sake(rig):
    for name in ("reflection", "knowledge_graph"):
        (rig.data / f"{name}.duckdb").write_bytes(b"")
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "reflection" in result.error
    record = await rig.record()
    assert (record.failures, rig.kept.objects) == (0, {})


async def test_a_deleted_database_stays_in_later_uploads(rig):
    await rig.sync()
    (rig.data / "knowledge_graph.duckdb").unlink()
    rig.commit("reflection")
    await rig.sync()
    assert rig.origins(rig.manifests[-1])["knowledge_graph.duckdb"] == "carried"
    rig.assert_whole()


async def test_a_named_graph_with_an_odd_name_travels_under_a_plain_one(rig):
    odd = rig.data / "knowledge_graph_mein Garten ☂.duckdb"
    odd.write_bytes((rig.data / "knowledge_graph.duckdb").read_bytes())
    await rig.sync()
    part = next(part for part in rig.manifests[0].parts if part.name == odd.name)
    assert part.key.isascii()
    assert " " not in part.key
    rig.assert_whole()


async def test_a_lost_ledger_is_restored_from_the_newest_manifest(rig):
    first = await rig.sync()
    for path in (rig.tmp_path / "state").glob("ledger*"):
        path.unlink()
    assert isinstance(await rig.sync(), SyncSkipped)
    assert [manifest.upload_id for manifest in rig.manifests] == [first.upload_id]


async def test_an_unreadable_newest_manifest_does_not_stop_a_lost_ledger_from_being_restored(rig):
    first = await rig.sync()
    for path in (rig.tmp_path / "state").glob("ledger*"):
        path.unlink()
    rig.kept.objects[f"{PREFIX}20990101_000000_laptop/manifest.json"] = (b"{", {})
    rig.commit("reflection")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert first.upload_id < result.upload_id < "2099"
    assert rig.origins(Manifest.decode(rig.kept.objects[result.manifest_key][0]))["knowledge_graph.duckdb"] == "copied"


async def test_ids_grow_when_the_clock_goes_back_by_a_day(rig, monkeypatch):
    first = await rig.sync()
    now = home_bootstrap.SystemClock.now
    monkeypatch.setattr(home_bootstrap.SystemClock, "now", lambda self: now(self) - timedelta(days=1))
    rig.commit("reflection")
    second = await rig.sync()
    assert second.upload_id > first.upload_id
    rig.commit("reflection")
    assert (await rig.sync()).upload_id > second.upload_id


async def test_an_object_that_vanished_from_the_bucket_is_sent_again(rig):
    await rig.sync()
    (part,) = rig.manifests[0].of("knowledge_graph")
    del rig.kept.objects[part.key]
    rig.commit("reflection")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "sent"}
    newest = rig.manifests[-1]
    assert all(part.key in rig.kept.objects for part in newest.parts)


async def test_a_transient_failure_is_tried_again_and_what_was_sent_is_not_sent_twice(rig):
    rig.store.fail("put", StoreError("503", transient=True), key="reflection.duckdb", times=2)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    graph = f"{PREFIX}{result.upload_id}/knowledge_graph.duckdb"
    assert rig.store.keys("put").count(graph) == 1
    assert len(rig.manifests) == 1


async def test_a_manifest_whose_answer_was_lost_is_adopted_not_written_again(rig):
    rig.store.fail("put", StoreError("reset", transient=True), key="manifest.json", after=True)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert len(rig.manifests) == 1
    assert sum(key.endswith("manifest.json") for key in rig.store.keys("put")) == 1
    assert (await rig.record()).intent is None


async def test_a_permanent_failure_is_reported_with_its_cure_and_leaves_the_databases_owed(rig):
    rig.store.fail("put", StoreError("403 AccessDenied", hint="allow s3:PutObject"), times=9)
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "allow s3:PutObject" in result.error
    assert result.retry_at is not None
    assert {record.state.value for record in (await rig.record()).databases.values()} == {"owed"}
    assert rig.manifests == []


async def test_a_store_that_does_not_permit_sweeping_is_no_obstacle(rig):
    rig.store.fail("sweep", NotPermitted("s3:ListBucketMultipartUploads", hint="a lifecycle rule"), times=9)
    assert isinstance(await rig.sync(), SyncSucceeded)


async def test_what_others_have_begun_is_left_alone_for_a_day_and_ones_own_leftovers_go_at_once(rig, monkeypatch):
    """Another machine may upload under the same system id: only what is a day old there is nobody's."""
    asked = []

    async def sweep(prefix, *, started_before=None):
        asked.append((prefix, started_before and timedelta(hours=23) < rig.home().clock.now() - started_before))
        return 0

    monkeypatch.setattr(rig.kept, "sweep", sweep)
    rig.store.fail("put", StoreError("403"), key="reflection.duckdb", times=2)
    await rig.sync()
    assert asked == [(PREFIX, True)]
    begun = naming.upload_of(next(iter(rig.objects)))
    for change in (lambda: None, rig.commit):  # gone on with, and overtaken by a change
        asked.clear()
        change()
        await rig.sync()
        assert asked[:2] == [(f"{PREFIX}{begun}/", None), (PREFIX, True)]
    assert {naming.upload_of(key) for key in rig.objects} == {rig.manifests[0].upload_id} != {begun}
    asked.clear()
    await rig.sync()
    assert asked == [(PREFIX, True)]


async def test_a_standstill_is_a_transient_failure_that_names_its_setting(rig):
    rig.settings |= {"upload_timeout_seconds": 1, "max_retries": 0}
    rig.store.stall("put", key="reflection.duckdb", times=9)
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "akosha_upload_timeout_seconds" in result.error


async def test_cancelled_in_the_middle_no_manifest_and_no_copy_remains(rig):
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


async def test_a_change_during_an_upload_is_the_next_uploads(rig):
    """The snapshot is what goes up; its fingerprint is from before, so the change shows afterwards."""
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


async def test_an_upload_that_was_given_up_goes_on_under_its_id_and_sends_nothing_twice(rig):
    rig.store.fail("put", StoreError("403"), key="reflection.duckdb", times=2)
    assert isinstance(await rig.sync(), SyncFailed)
    assert isinstance(await rig.sync(), SyncFailed)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert {naming.upload_of(key) for key in rig.objects} == {result.upload_id}
    assert sum(key.endswith("knowledge_graph.duckdb") for key in rig.store.keys("put")) == 1


async def test_an_upload_that_was_given_up_and_overtaken_by_a_change_leaves_no_objects(rig):
    rig.store.fail("put", StoreError("403"), key="reflection.duckdb")
    assert isinstance(await rig.sync(), SyncFailed)
    assert rig.objects
    rig.commit("reflection")
    result = await rig.sync()
    assert {naming.upload_of(key) for key in rig.objects} == {result.upload_id}


async def test_where_deleting_is_not_permitted_leftovers_stay_and_nothing_else_suffers(rig):
    rig.store.fail("put", StoreError("403"), key="reflection.duckdb")
    assert isinstance(await rig.sync(), SyncFailed)
    rig.commit("reflection")
    rig.store.fail("delete", NotPermitted("403", hint="allow s3:DeleteObject"))
    assert isinstance(await rig.sync(), SyncSucceeded)


async def test_a_manifest_whose_answer_was_lost_on_the_last_attempt_is_a_success(rig):
    rig.settings["max_retries"] = 0
    rig.store.fail("put", StoreError("reset", transient=True), key="manifest.json", after=True)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert len(rig.manifests) == 1


@pytest.mark.parametrize("name", ["reflection.duckdb", "manifest.json"])
async def test_a_sync_that_a_person_asks_for_sends_again_what_is_damaged_in_the_newest_upload(rig, name):
    """`prune` and `verify` say so; nothing has changed on this machine, and a session's end alone compares nothing."""
    await rig.sync()
    (manifest,) = rig.manifests
    key = naming.object_key("laptop", manifest.upload_id, name)
    data, metadata = rig.kept.objects[key]
    rig.kept.objects[key] = bytes([data[0] ^ 1]) + data[1:], metadata
    assert isinstance(await rig.sync(reason="session_end"), SyncSkipped)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    sent = {"reflection.duckdb": "sent", "knowledge_graph.duckdb": "copied" if name != "manifest.json" else "sent"}
    newest = Manifest.decode(rig.kept.objects[result.manifest_key][0])
    assert rig.origins(newest) == sent
    assert (await verified(rig, result.upload_id)).problems == {}
    assert isinstance(await rig.sync(), SyncSkipped)


async def test_a_part_that_was_damaged_in_the_bucket_is_sent_again_not_passed_on(rig):
    """The store refuses to copy what is not expected; the bytes must not come through here unseen, either."""
    await rig.sync()
    (part,) = rig.manifests[0].of("knowledge_graph")
    data, metadata = rig.kept.objects[part.key]
    rig.kept.objects[part.key] = data[:100], metadata
    rig.commit("reflection")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "sent"}


async def test_from_an_emptied_bucket_everything_is_sent_again_when_somebody_asks(rig):
    await rig.sync()
    for key in rig.objects:
        del rig.kept.objects[key]
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert set(rig.origins(rig.manifests[-1]).values()) == {"sent"}
    rig.assert_whole()


async def test_many_objects_that_vanished_cost_one_attempt(rig):
    for name in "abcdef":
        (rig.data / f"knowledge_graph_{name}.duckdb").write_bytes((rig.data / "knowledge_graph.duckdb").read_bytes())
    await rig.sync()
    for key in [key for key in rig.kept.objects if "knowledge_graph_" in key]:
        del rig.kept.objects[key]
    rig.commit("reflection")
    rig.settings["max_retries"] = 1
    assert isinstance(await rig.sync(), SyncSucceeded)
    newest = rig.manifests[-1]
    assert all(part.key in rig.kept.objects for part in newest.parts)


@pytest.mark.parametrize(
    "foreign", ["99991231_235959_X/x", "99991231_235959_laptop/x", "20990101_000000_laptop/manifest.json"]
)
async def test_a_foreign_object_with_an_id_far_ahead_is_ignored_with_a_warning(rig, foreign):
    first = await rig.sync()
    rig.kept.objects[f"{PREFIX}{foreign}"] = b"{}", {}
    rig.commit("reflection")
    second = await rig.sync()
    assert isinstance(second, SyncSucceeded)
    assert first.upload_id < second.upload_id < "2099"
    (warning,) = await rig.warnings()
    assert warning.code == "foreign_uploads"
    assert foreign.split("/")[0] in warning.message
    rig.commit("reflection")
    assert second.upload_id < (await rig.sync()).upload_id < "2099"
    del rig.kept.objects[f"{PREFIX}{foreign}"]
    rig.commit("reflection")
    await rig.sync()
    assert await rig.warnings() == ()


async def test_an_id_under_which_something_lies_is_not_used(rig, monkeypatch):
    now = home_bootstrap.SystemClock().now().replace(microsecond=0)
    monkeypatch.setattr(home_bootstrap.SystemClock, "now", lambda self: now)
    for second in range(3):
        rig.kept.objects[f"{PREFIX}{naming.upload_id(now + timedelta(seconds=second), 'laptop')}/x"] = b"", {}
    assert (await rig.sync()).upload_id == naming.upload_id(now + timedelta(seconds=3), "laptop")


async def test_a_clock_that_was_ahead_once_is_a_warning_until_ids_agree_with_the_clock_again(rig, monkeypatch):
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


async def test_a_ledger_that_cannot_be_written_ends_a_single_sync_with_its_error(rig, monkeypatch):
    async def full(*_):
        raise StateError("the disk is full", transient=True)

    monkeypatch.setattr(home_bootstrap.SqliteLedger, "begin", full)
    with pytest.raises(StateError, match="the disk is full"):
        await rig.sync()
    assert rig.objects == set(), "nothing is put before the intent is written"


async def test_rows_that_could_not_be_counted_are_not_reported_from_before(rig):
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
    assert newest.memories is None, "no database of it was read"
    assert newest.without_memories == {"reflection": newest.of("reflection")[0].unverified_reason}


async def test_a_problem_of_a_database_that_was_removed_is_forgotten(rig):
    odd = rig.data / "knowledge_graph_x.duckdb"
    odd.mkdir()
    await rig.sync()
    assert "knowledge_graph_x" in rig.manifests[0].incomplete
    odd.rmdir()
    assert (await rig.sync()).why == "nothing has changed since the last upload"
    rig.commit("reflection")
    assert (await rig.sync()).incomplete == {}


async def test_what_was_not_asked_for_is_named_in_the_first_upload_too(rig):
    result = await rig.sync(upload_knowledge_graph=False)
    assert list(result.incomplete) == ["knowledge_graph"]


async def test_no_place_of_this_machine_is_in_a_manifest(rig):
    (rig.data / "knowledge_graph_x.duckdb").symlink_to("/etc/hostname")
    rig.commit("reflection")
    await rig.sync()
    assert str(rig.tmp_path) not in rig.manifests[-1].encode().decode()


@pytest.mark.parametrize("call", ["list", "get"])
def test_a_store_that_hangs_before_the_upload_is_given_up_like_one_that_hangs_in_it(tmp_path, monkeypatch, call):
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


async def test_memories_are_those_new_or_changed_since_the_base(remembering):
    await remembering.sync()
    (first,) = remembering.manifests
    assert len(remembering.memories(first)) == 30 + 30 + 6 + 5, "conversations, reflections, entities and relationships"
    assert first.memories.bases == {"knowledge_graph": None, "reflection": None}
    remembering.remember("lunch")
    remembering.change("UPDATE reflections_v2 SET content = 'another' WHERE id = (SELECT min(id) FROM reflections_v2)")
    result = await remembering.sync()
    second = remembering.manifests[-1]
    assert (second.memories.count, result.memories) == (2, 2)
    assert "lunch" in remembering.memories(second)
    assert second.memories.bases == {"reflection": first.upload_id}, "the graph was copied, its rows were not looked at"
    remembering.change("UPDATE conversations_v2 SET access_count = access_count + 1, last_accessed = now()")
    await remembering.sync()
    assert remembering.origins(remembering.manifests[-1])["reflection.duckdb"] == "sent"
    assert remembering.memories(remembering.manifests[-1]) == [], "reading a memory does not change it"
    assert remembering.manifests[-1].memories.bases == {"reflection": second.upload_id}
    remembering.assert_whole()


@pytest.mark.skipif(not REAL.is_dir(), reason="needs Session-Buddy's own databases")
async def test_memories_of_session_buddys_own_databases(remembering):
    for path in remembering.data.iterdir():
        path.unlink()
    shutil.copytree(REAL / "closed", remembering.data, dirs_exist_ok=True)
    await remembering.sync()
    entries = json.loads(remembering.kept.objects[remembering.manifests[0].memories.key][0])["conversations"]
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
    shutil.copytree(REAL / "mid", remembering.data, dirs_exist_ok=True)
    await remembering.sync()
    assert remembering.manifests[-1].memories.count == 220 + 61 + 40 + 66, "another machine's, some of them in a WAL"
    remembering.assert_whole()


async def test_a_database_whose_rows_cannot_be_read_goes_without_them_and_catches_up_later(remembering):
    await remembering.sync()
    main = remembering.data / "reflection.duckdb"
    good = main.read_bytes()
    main.write_bytes(good[:12] + (999).to_bytes(8, "little") + good[20:])
    remembering.commit("knowledge_graph")
    await remembering.sync()
    without = remembering.manifests[-1]
    assert list(without.memories.bases) == ["knowledge_graph"]
    assert list(without.without_memories) == ["reflection"]
    main.write_bytes(good)
    remembering.remember("lunch")
    await remembering.sync()
    assert remembering.memories(remembering.manifests[-1]) == ["lunch"]
    assert remembering.manifests[-1].memories.bases == {"reflection": remembering.manifests[0].upload_id}


async def cancelled_at(rig, call: str, key: str) -> None:
    reached = rig.store.stall(call, key=key, after=True)
    task = asyncio.create_task(rig.sync())
    async with asyncio.timeout(60):
        await reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_killed_after_the_manifest_its_memories_were_delivered_with_it(remembering):
    await cancelled_at(remembering, "put", "manifest.json")
    (first,) = remembering.manifests
    remembering.remember("lunch")
    await remembering.sync()
    assert remembering.memories(remembering.manifests[-1]) == ["lunch"]
    assert remembering.manifests[-1].memories.bases == {"reflection": first.upload_id}


async def test_killed_before_the_manifest_its_memories_are_not_sent_twice_and_not_taken_for_delivered(remembering):
    await cancelled_at(remembering, "put", "memories.json")
    assert remembering.manifests == []
    begun = remembering.store.keys("put")[-1]
    result = await remembering.sync()
    assert remembering.store.keys("put").count(begun) == 1
    assert remembering.manifests[0].memories.key == begun
    assert (remembering.manifests[0].memories.count, result.memories) == (71, 71)
    remembering.assert_whole()


async def test_an_upload_overtaken_by_a_change_delivers_none_of_its_memories(remembering):
    await cancelled_at(remembering, "put", "memories.json")
    remembering.remember("lunch")
    await remembering.sync()
    (only,) = remembering.manifests
    assert only.memories.count == 72
    assert only.memories.bases == {"knowledge_graph": None, "reflection": None}
    assert {naming.upload_of(key) for key in remembering.objects} == {only.upload_id}


async def test_memories_that_cannot_be_put_make_no_upload(rig):
    rig.verify = True
    rig.store.fail("put", StoreError("403"), key="memories.json")
    assert isinstance(await rig.sync(), SyncFailed)
    assert rig.manifests == []


async def test_from_an_emptied_bucket_or_with_a_lost_ledger_all_memories_are_sent_again(remembering):
    await remembering.sync()
    for key in remembering.objects:
        del remembering.kept.objects[key]
    await remembering.sync()
    assert remembering.manifests[-1].memories.count == 71
    assert set(remembering.manifests[-1].memories.bases.values()) == {None}
    for path in (remembering.tmp_path / "state").glob("ledger*"):
        path.unlink()
    remembering.remember("lunch")
    await remembering.sync()
    assert remembering.manifests[-1].memories.count == 30 + 1 + 30
    assert remembering.manifests[-1].memories.bases == {"reflection": None}, "who knows what that upload had"


async def test_markers_of_an_ingestion_are_written_when_the_upload_is_whole(rig):
    rig.verify = True
    rig.settings["ingestion_markers"] = True
    rig.store.fail("put", StoreError("InvalidArgument: a key cannot end in /"), key="/")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.store.keys("put")[-2:] == [result.manifest_key, "systems/laptop/"]
    rig.commit("reflection")
    second = await rig.sync()
    markers = {f"{PREFIX}{second.upload_id}/", "systems/laptop/", f"{PREFIX}{second.upload_id}//memories.json"}
    assert markers <= rig.kept.objects.keys()
    assert markers.isdisjoint(second.files_uploaded)
    assert isinstance(await rig.sync(), SyncSkipped)
    rig.assert_whole()


async def test_without_the_setting_there_are_no_markers(rig):
    result = await rig.sync()
    assert rig.objects == {*result.files_uploaded}


async def verified(rig, upload: str):
    return await Verifier(Catalog(rig.kept, "laptop"), rig.home().clock).shallow(upload)


async def test_after_a_prune_the_newest_upload_is_whole_and_syncs_go_on_from_it(rig):
    for _ in range(3):
        last = await rig.sync()
        rig.commit("reflection")
    pruning = Pruner(Catalog(rig.kept, "laptop"), KeepRules(last=1, daily=0, weekly=0, monthly=0), rig.home().clock)
    pruned = await pruning.carry_out(await pruning.plan(spared_by(await rig.record())), {})
    assert (len(pruned.upload_ids), pruned.error) == (2, None)
    assert [manifest.upload_id for manifest in rig.manifests] == [last.upload_id]
    assert (await verified(rig, last.upload_id)).problems == {}
    rig.assert_whole()
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "copied", "reflection.duckdb": "sent"}
    assert (await verified(rig, result.upload_id)).problems == {}
    rig.assert_whole()


async def restored_elsewhere(rig, name: str) -> None:
    """Restore the newest upload to another machine's data directory; from now on, the rig is that machine."""
    rig.tmp_path, rig.data = rig.tmp_path / name, rig.tmp_path / name / "data"
    archive = Catalog(rig.kept, "laptop")
    async with open_restore(rig.data, archive) as restoring:
        await restoring.restore(await archive.manifest(await archive.resolve()), RestoreRequest(), NoReport())


class NoReport:
    def phase(self, _name, _total):
        pass

    def moved(self, _count):
        pass


@pytest.mark.long
async def test_a_machine_that_takes_anothers_place_sends_what_was_made_one_file_and_nothing_else(rig):
    """As docs/guides/restore.md says: what had no WAL has the bytes that are in the bucket already."""
    with session_buddy.Writer(rig.data, "--paused") as writer:
        await asyncio.to_thread(writer.run, "commit 2")
        await rig.sync()
    assert "reflection.duckdb.wal" in rig.origins(rig.manifests[-1])
    await restored_elsewhere(rig, "new")
    assert isinstance(await rig.sync(), SyncFailed), "the old machine may still run"
    result = await rig.sync(take_over=True)
    assert isinstance(result, SyncSucceeded)
    assert rig.origins(rig.manifests[-1]) == {"knowledge_graph.duckdb": "copied", "reflection.duckdb": "sent"}
    rig.assert_whole()
    await restored_elsewhere(rig, "newest")
    assert isinstance(await rig.sync(take_over=True), SyncSkipped), "nothing had a WAL any more"
    assert len(rig.manifests) == 2
