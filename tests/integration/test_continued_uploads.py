"""Unfinished uploads that go on after databases have changed: what is kept, what is replaced, and when they do not."""

import asyncio

import pytest
from structlog.testing import capture_logs

from agent.application.sync import patching
from agent.domain import upload_plan
from agent.domain.errors import NotPermitted, StoreError
from agent.domain.events import SyncFailed
from tests.integration.test_cloud_sync import PREFIX
from tests.integration.test_patched_uploads import MAIN, PatchRig
from tests.support import session_buddy

CUT = StoreError("cut", transient=True)
GRAPH = "knowledge_graph.duckdb"


@pytest.fixture
def rig(tmp_path, monkeypatch):
    rig = PatchRig(tmp_path, monkeypatch)
    rig.settings |= {"chunk_size_mb": 1, "max_retries": 0}
    return rig


@pytest.fixture
def writer(rig):
    with session_buddy.Writer(rig.data, "--paused") as writer:
        writer.run("commit 2")
        yield writer


async def unfinished(rig, key: str, **how) -> str:
    """Sync until the put of a key fails, and return the ID of the unfinished upload."""
    rig.store.fail("put", CUT, key=key, **how)
    assert isinstance(await rig.sync(), SyncFailed)
    return (await rig.record()).intent.upload_id


async def finished(rig):
    """Sync with success; return the manifest of the newest upload, the keys that were put, and the log events."""
    before = len(rig.store.keys("put"))
    with capture_logs() as logs:
        assert (await rig.sync()).success
    rig.assert_complete()
    return rig.manifests[-1], rig.store.keys("put")[before:], [line["event"] for line in logs]


def keys_of(rig, upload: str) -> set[str]:
    return {key.rpartition("/")[2] for key in rig.objects if key.startswith(f"{PREFIX}{upload}/")}


async def test_an_upload_goes_on_although_the_wal_has_grown_and_keeps_what_is_the_same(rig, writer):
    upload = await unfinished(rig, f"{MAIN}.wal", after=True)
    await asyncio.to_thread(writer.run, "commit 2")
    manifest, put, events = await finished(rig)
    assert manifest.upload_id == upload
    assert "upload_continued" in events
    assert "upload_abandoned" not in events
    assert [key.rpartition("/")[2] for key in put if "memories" not in key] == [f"{MAIN}.wal", "manifest.json"]
    assert not await rig.deep_problems(manifest)


async def test_an_upload_goes_on_although_another_database_has_changed(rig):
    upload = await unfinished(rig, f"/{MAIN}", after=True)
    rig.commit("knowledge_graph")
    manifest, put, _ = await finished(rig)
    assert manifest.upload_id == upload
    assert [key.rpartition("/")[2] for key in put] == [GRAPH, "manifest.json"]
    assert not await rig.deep_problems(manifest)


async def test_objects_that_do_not_belong_to_the_continued_upload_are_removed(rig, writer):
    """An earlier attempt was to send a patch; now the file is sent whole."""
    upload = await unfinished(rig, f"{MAIN}.wal")
    rig.bucket.objects[f"{PREFIX}{upload}/{MAIN}.patch-01"] = (b"of an earlier attempt", {})
    await asyncio.to_thread(writer.run, "commit 2")
    manifest, _, _ = await finished(rig)
    assert keys_of(rig, upload) == {item.key.rpartition("/")[2] for item in manifest.objects} | {"manifest.json"} | (
        {manifest.memories.key.rpartition("/")[2]} if manifest.memories else set()
    )


@pytest.mark.parametrize("may_delete", [True, False])
async def test_a_plain_file_of_an_earlier_attempt_never_stays_beside_a_base(rig, monkeypatch, may_delete):
    """A restore without the manifest would read it, with a WAL of another state. A target may refuse to delete."""
    monkeypatch.setattr(upload_plan, "LEAST_PATCHED_BYTES", 0)
    monkeypatch.setattr(patching, "largest_patch", lambda *_: 2**30)
    assert (await rig.sync()).success
    rig.commit()
    upload = await unfinished(rig, ".patch-01")
    assert GRAPH in keys_of(rig, upload)
    rig.commit("knowledge_graph")
    if not may_delete:
        rig.store.fail("delete", NotPermitted("denied"), times=9)
    manifest, _, events = await finished(rig)
    assert rig.names(manifest, "knowledge_graph") == [f"{GRAPH}.base", f"{GRAPH}.patch-01"]
    assert rig.names(manifest) == [f"{MAIN}.base", f"{MAIN}.patch-01"]
    assert (manifest.upload_id == upload) is may_delete
    assert ("upload_abandoned" in events) is not may_delete
    assert GRAPH not in keys_of(rig, manifest.upload_id)


@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_copy_that_the_store_made_without_an_answer_is_used_if_it_is_whole(rig, is_whole):
    assert (await rig.sync()).success
    rig.commit()
    rig.store.fail("copy", CUT, key=".base", after=True)
    assert isinstance(await rig.sync(), SyncFailed)
    key = f"{PREFIX}{(await rig.record()).intent.upload_id}/{MAIN}.base"
    if not is_whole:
        data, metadata = rig.bucket.objects[key]
        rig.bucket.objects[key] = data[:-1] + bytes([data[-1] ^ 1]), metadata
    manifest, _, _ = await finished(rig)
    assert rig.names(manifest) == [f"{MAIN}.base", f"{MAIN}.patch-01"]
    assert rig.store.keys("copy").count(key) == 1 + (not is_whole)
    assert not await rig.deep_problems(manifest)


async def test_an_upload_whose_manifest_was_sent_is_not_changed(rig, writer):
    """The store may have it although it did not answer, or get it later."""
    upload = await unfinished(rig, "manifest.json")
    await asyncio.to_thread(writer.run, "commit 2")
    manifest, _, events = await finished(rig)
    assert "upload_abandoned" in events
    assert manifest.upload_id > upload
    assert keys_of(rig, upload) == set()


@pytest.mark.parametrize(("setting", "earlier"), [("agent_mirror", 1), ("enable_compression", 0)])
async def test_an_upload_whose_manifest_was_sent_gets_no_other_objects(rig, setting, earlier):
    """Without the mirror, the whole file would replace base and patch. Without compression, all files are others."""
    for _ in range(earlier):
        assert (await rig.sync()).success
    rig.commit()
    upload = await unfinished(rig, "manifest.json")
    rig.settings[setting] = False
    manifest, _, events = await finished(rig)
    assert "upload_abandoned" in events
    assert manifest.upload_id > upload
    assert keys_of(rig, upload) == set()


async def test_the_manifest_of_an_upload_without_a_change_is_put_again(rig):
    assert (await rig.sync()).success
    rig.commit()
    upload = await unfinished(rig, "manifest.json")
    manifest, put, _ = await finished(rig)
    assert manifest.upload_id == upload
    assert put == [manifest.key]


async def test_an_upload_whose_manifest_arrived_is_adopted_and_not_changed(rig, writer):
    rig.store.fail("get", CUT, key="manifest.json", times=1)
    upload = await unfinished(rig, "manifest.json", after=True)
    await asyncio.to_thread(writer.run, "commit 2")
    manifest, _, events = await finished(rig)
    assert "upload_adopted" in events
    assert [each.upload_id for each in rig.manifests] == [upload, manifest.upload_id]


async def test_an_upload_of_a_file_that_is_gone_does_not_go_on(rig, writer):
    """A checkpoint removes the WAL. Its object would stay where the agent may not delete."""
    upload = await unfinished(rig, f"{MAIN}.wal", after=True)
    await asyncio.to_thread(writer.close)
    manifest, _, events = await finished(rig)
    assert "upload_abandoned" in events
    assert manifest.upload_id > upload
    assert keys_of(rig, upload) == set()


async def test_a_kill_between_the_new_digests_and_the_first_object_loses_nothing(rig, writer):
    upload = await unfinished(rig, f"{MAIN}.wal", after=True)
    await asyncio.to_thread(writer.run, "commit 2")
    assert await unfinished(rig, f"{MAIN}.wal") == upload
    await asyncio.to_thread(writer.run, "commit 2")
    manifest, _, _ = await finished(rig)
    assert manifest.upload_id == upload
    assert not await rig.deep_problems(manifest)
