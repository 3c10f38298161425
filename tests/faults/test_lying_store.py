"""Stores that give wrong answers: a PUT that is not kept, a stale listing, bytes that change afterwards."""

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.system_clock import SystemClock
from agent.application.archive.catalog import Catalog
from agent.application.archive.verify import Verifier
from agent.application.sync import confirmation
from agent.application.sync.bucket_uploads import BucketUploads
from agent.application.sync.lost_databases import LOST_REASON
from agent.domain.events import SyncFailed, SyncSucceeded
from tests.integration.test_cloud_sync import PREFIX, Rig
from tests.support.servers.faulty_proxy import answer_with, ending, store_other_bytes, swallow

pytest_plugins = ["tests.support.servers.fixtures"]


@pytest.fixture
def rig(tmp_path, monkeypatch):
    return Rig(tmp_path, monkeypatch, memories=True)


@pytest.fixture
def no_confirm_wait(monkeypatch):
    """An object that the first check does not find counts as lost."""
    monkeypatch.setattr(confirmation, "CONFIRM_SECONDS", 0.0)


async def change_with_a_base(rig):
    """Sync, and change a database, so that the next upload has memories; return the keys in the store."""
    assert isinstance(await rig.sync(), SyncSucceeded)
    rig.commit("reflection")
    return await keys(rig.store)


async def keys(store):
    return {item.key async for item in store.list(PREFIX)}


@pytest.mark.parametrize("name", ["reflection.duckdb", "memories.json.gz", "manifest.json"])
async def test_an_object_that_the_store_lost_after_a_200_is_sent_again(rig, proxy, proxied, no_confirm_wait, name):
    rig.store = proxied()
    before = await change_with_a_base(rig)
    proxy.on("put_object", ending(name, swallow()), times=None)
    rig.settings["max_retries"] = 0
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert name in result.error
    assert "accepted" in result.error
    new = [key.rpartition("/")[2] for key in await keys(rig.store) - before]
    assert name not in new
    assert "manifest.json" not in new

    proxy.clear()
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert {name, "manifest.json"} <= {key.rpartition("/")[2] for key in await keys(rig.store) - before}


async def test_an_object_missing_from_a_listing_is_checked_with_head(rig, proxy, proxied):
    rig.store = proxied()
    await change_with_a_base(rig)
    hidden = ("<Key>systems/laptop/uploads/", "<Key>systems/laptop/uploads/0")
    proxy.on("list_objects_v2", answer_with(replace=hidden), times=None)
    proxy.requests.clear()
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    requests = [(request.method, request.path.rpartition("/")[2]) for request in proxy.requests]
    files = ["knowledge_graph.duckdb", "manifest.json", "memories.json.gz", "reflection.duckdb"]
    assert sorted(name for method, name in requests if method == "PUT" and name != "owner.json") == files
    assert {name for method, name in requests if method == "HEAD"} >= {*files}


@pytest.mark.parametrize("name", ["reflection.duckdb", "memories.json.gz"])
async def test_an_object_that_the_store_has_changed_fails_the_upload_and_is_sent_again(
    rig, proxy, proxied, no_confirm_wait, name
):
    rig.store = proxied()
    before = await change_with_a_base(rig)
    rig.settings["max_retries"] = 0
    proxy.on("put_object", ending(name, store_other_bytes()), times=None)
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "ETag" in result.error
    assert await keys(rig.store) == before

    proxy.clear()
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert (await verified(rig.store, result.upload_id)).whole


@pytest.mark.parametrize("changed", [False, True], ids=["same databases", "changed databases"])
async def test_a_manifest_that_the_store_has_changed_is_replaced_or_removed(
    rig, proxy, proxied, no_confirm_wait, changed
):
    rig.store = proxied()
    rig.settings["max_retries"] = 0
    proxy.on("put_object", ending("manifest.json", store_other_bytes()))
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "manifest.json', but its ETag" in result.error

    proxy.clear()
    if changed:
        rig.commit("reflection")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert (await verified(rig.store, result.upload_id)).whole
    started, complete = await BucketUploads(rig.store, "laptop").ids_after(None)
    assert started == complete == [result.upload_id]


async def test_a_damaged_newest_manifest_is_not_adopted_without_the_ledger(rig, proxy, proxied):
    rig.store = proxied()
    first = await rig.sync()
    await flip(rig.store, f"{PREFIX}{first.upload_id}/manifest.json")
    assert await BucketUploads(rig.store, "laptop").newest_manifest() is None


async def test_a_damaged_object_in_a_bucket_is_not_copied(rig, proxy, proxied, aws):
    rig.store = proxied()
    first = await rig.sync()
    await flip(rig.store, f"{PREFIX}{first.upload_id}/knowledge_graph.duckdb")
    rig.commit("reflection")
    second = await rig.sync()
    manifest = await BucketUploads(rig.store, "laptop").manifest(second.upload_id)
    assert rig.origins(manifest) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "sent"}
    assert (await verified(rig.store, second.upload_id)).whole
    assert set((await verified(rig.store, first.upload_id)).problems) == {"knowledge_graph.duckdb"}


async def test_a_damaged_object_in_a_directory_is_not_copied(rig, tmp_path):
    rig.store = DirectoryStore(tmp_path / "bucket")
    first = await rig.sync()
    rig.commit("reflection")
    second = await rig.sync()
    manifest = await BucketUploads(rig.store, "laptop").manifest(second.upload_id)
    assert rig.origins(manifest)["knowledge_graph.duckdb"] == "copied"
    flip_file(tmp_path / "bucket" / f"{PREFIX}{second.upload_id}/knowledge_graph.duckdb")
    for result in (first, second):  # they share the file
        assert set((await verified(rig.store, result.upload_id)).problems) == {"knowledge_graph.duckdb"}
    rig.commit("reflection")
    third = await rig.sync()
    manifest = await BucketUploads(rig.store, "laptop").manifest(third.upload_id)
    assert rig.origins(manifest) == {"knowledge_graph.duckdb": "sent", "reflection.duckdb": "sent"}
    assert (await verified(rig.store, third.upload_id)).whole


async def test_a_damaged_object_of_a_deleted_database_is_reported_as_lost(rig, tmp_path):
    rig.store = DirectoryStore(tmp_path / "bucket")
    first = await rig.sync()
    graph = rig.data / "knowledge_graph.duckdb"
    graph.rename(tmp_path / "aside")
    flip_file(tmp_path / "bucket" / f"{PREFIX}{first.upload_id}/knowledge_graph.duckdb")
    rig.commit("reflection")
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert result.incomplete == {"knowledge_graph": LOST_REASON}
    assert [warning.code for warning in await rig.warnings()] == ["database_lost"]
    (tmp_path / "aside").rename(graph)
    assert (await rig.sync()).incomplete == {}
    assert await rig.warnings() == ()


async def test_damage_found_without_the_data_directory_fails_the_sync(rig, tmp_path):
    class Unmounting(DirectoryStore):
        async def copy(self, *arguments, **how):
            rig.data.rename(tmp_path / "aside")
            return await super().copy(*arguments, **how)

    rig.store, rig.settings["max_retries"] = DirectoryStore(tmp_path / "bucket"), 0
    first = await rig.sync()
    graph = rig.data / "knowledge_graph.duckdb"
    graph.rename(tmp_path / "graph")
    flip_file(tmp_path / "bucket" / f"{PREFIX}{first.upload_id}/knowledge_graph.duckdb")
    rig.commit("reflection")
    rig.store = Unmounting(tmp_path / "bucket")
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "knowledge_graph.duckdb is missing from the bucket" in result.error
    assert await rig.warnings() == ()
    (tmp_path / "aside").rename(rig.data)
    (tmp_path / "graph").rename(graph)
    rig.store = DirectoryStore(tmp_path / "bucket")
    assert (await rig.sync()).incomplete == {}


def flip_file(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def flip(store, key):
    """Put the object again with one changed bit and the same metadata."""
    found = await store.head(key)
    data = bytearray(b"".join([piece async for piece in store.get(key)]))
    data[len(data) // 2] ^= 1

    async def body():
        yield bytes(data)

    await store.put(key, body(), metadata=found.metadata, part_bytes=5 * 2**20, progress=lambda _: None)


async def verified(store, upload):
    return await Verifier(Catalog(store, "laptop"), SystemClock()).shallow(upload)
