"""Uploads of changed main files as a base and patches: what is sent, and that every upload restores its exact bytes."""

import asyncio
import hashlib
import shutil
from datetime import UTC
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters.duckdb import DuckdbMemoryReader, snapshot_taker
from agent.adapters.duckdb.verification import Verdict
from agent.adapters.gunzip import Unpacker
from agent.adapters.memories_file import JsonMemoriesFile
from agent.adapters.patches import ZstdPatcher
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner
from agent.application.archive.restore import RestoreRequest
from agent.application.archive.verify import Verifier
from agent.application.ingest.turns import Turns
from agent.application.ingest.upload_ingester import UploadIngester
from agent.application.memories.push import MemoryPush
from agent.application.sync import patching
from agent.application.sync.bucket_uploads import BucketUploads
from agent.bootstrap.archive import open_deep_verifier
from agent.bootstrap.restore import open_restore
from agent.domain import upload_plan
from agent.domain.errors import CopyUnsupported, RestoreError, StoreError
from agent.domain.manifest import Manifest
from agent.domain.retention import KeepRules
from agent.ports import ignore_progress
from agent.ports.methods import NoReporter
from tests.integration.test_cloud_sync import PREFIX, Rig
from tests.support import session_buddy
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger
from tests.support.waiting import until
from tests.unit.test_ingest_service import FakeAkosha

MAIN = "reflection.duckdb"


class PatchRig(Rig):
    """A Rig whose reflection database has a megabyte of random text, and of whose files even small ones are patched."""

    def __init__(self, tmp_path: Path, monkeypatch) -> None:
        super().__init__(tmp_path, monkeypatch)
        self.verify = True  # the mirror keeps verified files only
        monkeypatch.setattr(upload_plan, "LEAST_PATCHED_BYTES", 2**18)
        with session_buddy.opened(self.data / MAIN) as base:
            base.execute("SELECT setseed(0.5)")
            base.execute("CREATE TABLE large AS SELECT n, md5(random()::VARCHAR) AS text FROM range(40000) AS rows(n)")

    def digest(self) -> str:
        return hashlib.sha256((self.data / MAIN).read_bytes()).hexdigest()

    async def synced(self) -> Manifest:
        """Commit a change, sync, and return the upload's manifest, which must be complete and restorable."""
        self.commit(rows=50)
        return await self.upload()

    async def upload(self) -> Manifest:
        assert (await self.sync()).success
        manifest = self.manifests[-1]
        self.assert_complete()
        await self.assert_restores(manifest, self.digest())
        return manifest

    async def assert_restores(self, manifest: Manifest, digest: str) -> None:
        """Assert that a restore of the upload gives the main file with this SHA-256."""
        destination = self.tmp_path / f"restored-{manifest.upload_id}"
        shutil.rmtree(destination, ignore_errors=True)
        await self.restore(manifest, destination)
        assert hashlib.sha256((destination / MAIN).read_bytes()).hexdigest() == digest

    async def restore(self, manifest: Manifest, destination: Path) -> None:
        async with open_restore(destination, Catalog(self.store, "laptop")) as restore:
            await restore.restore(manifest, RestoreRequest(raw=True), NoReporter())

    async def deep_problems(self, manifest: Manifest) -> dict[str, str]:
        home = self.home()
        async with open_deep_verifier(Catalog(self.store, "laptop"), home.state, home.clock) as verifier:
            return dict((await verifier.deep(manifest.upload_id, ignore_progress)).problems)

    def names(self, manifest: Manifest, database: str = "reflection") -> list[str]:
        """Return the names of the objects of a database."""
        return [item.key.rpartition("/")[2] for part in manifest.of(database) for item in part.objects]


@pytest.fixture
def rig(tmp_path, monkeypatch):
    return PatchRig(tmp_path, monkeypatch)


async def test_a_changed_main_file_is_a_copied_base_and_a_patch(rig):
    first = await rig.upload()
    assert rig.names(first) == [MAIN]
    second = await rig.synced()
    assert rig.names(second) == [f"{MAIN}.base", f"{MAIN}.patch-01"]
    assert f"{PREFIX}{second.upload_id}/{MAIN}" not in rig.objects
    (main,) = second.of("reflection")
    assert (main.origin, main.sha256) == ("sent", rig.digest())
    assert second.bytes_sent < first.bytes_sent / 2
    assert main.layers[0].key in rig.store.keys("copy")


async def test_each_change_adds_a_patch_and_the_store_copies_the_earlier_ones(rig):
    manifests = [await rig.upload()] + [await rig.synced() for _ in range(3)]
    assert [len(rig.names(manifest)) for manifest in manifests] == [1, 2, 3, 4]
    patches = [item.sha256 for item in manifests[-1].of("reflection")[0].objects]
    assert patches[:3] == [item.sha256 for item in manifests[-2].of("reflection")[0].objects]


async def test_a_patched_file_that_did_not_change_is_copied_with_its_layers(rig):
    await rig.upload()
    await rig.synced()
    rig.commit("knowledge_graph")
    manifest = await rig.upload()
    (main,) = manifest.of("reflection")
    assert (main.origin, len(main.layers)) == ("copied", 2)


async def test_a_grown_wal_beside_a_patched_file_is_sent_alone(rig):
    await rig.upload()
    await rig.synced()
    with session_buddy.Writer(rig.data, "--paused") as writer:
        await asyncio.to_thread(writer.run, "commit 2")
        assert (await rig.sync()).success
        manifest = rig.manifests[-1]
    assert {part.name: part.origin for part in manifest.of("reflection")} == {MAIN: "copied", f"{MAIN}.wal": "sent"}
    assert not await rig.deep_problems(manifest)


async def test_after_ten_patches_one_patch_on_the_base_replaces_them(rig, monkeypatch):
    monkeypatch.setattr(upload_plan, "MOST_PATCHES", 2)
    manifests = [await rig.upload()] + [await rig.synced() for _ in range(4)]
    assert [len(rig.names(manifest)) for manifest in manifests] == [1, 2, 3, 2, 3]


async def test_a_patch_that_saves_less_than_half_is_not_sent(rig):
    await rig.upload()
    rig.change("CREATE OR REPLACE TABLE large AS SELECT n, md5(random()::VARCHAR) AS text FROM range(40000) AS rows(n)")
    assert rig.names(await rig.upload()) == [MAIN]


async def test_a_small_file_is_sent_whole(rig, monkeypatch):
    monkeypatch.setattr(upload_plan, "LEAST_PATCHED_BYTES", 2**30)
    await rig.upload()
    assert rig.names(await rig.synced()) == [MAIN]


async def test_without_deduplication_the_whole_file_is_sent(rig):
    rig.settings["enable_deduplication"] = False
    await rig.upload()
    assert rig.names(await rig.synced()) == [MAIN]


async def test_without_a_mirror_the_whole_file_is_sent(rig):
    rig.settings["agent_mirror"] = False
    await rig.upload()
    assert rig.names(await rig.synced()) == [MAIN]


@pytest.mark.parametrize("layers", [1, 3])
async def test_a_store_that_does_not_copy_gets_the_whole_file(rig, layers):
    for _ in range(layers):
        await rig.synced()
    rig.store.fail("copy", CopyUnsupported("not here"), times=9, key=".base")
    manifest = await rig.synced()
    assert rig.names(manifest) == [MAIN]
    stored = {key for key in rig.objects if key.startswith(f"{PREFIX}{manifest.upload_id}/{MAIN}")}
    assert stored == {f"{PREFIX}{manifest.upload_id}/{MAIN}"}, "layers are left"


@pytest.mark.parametrize("copies", [True, False])
async def test_a_patch_is_sent_only_after_its_copy_to_a_store_that_refused_the_last_copy(rig, monkeypatch, copies):
    monkeypatch.setattr(BucketUploads, "copies", copies)
    await rig.upload()
    rig.store.fail("copy", CopyUnsupported("not here"), key=".base")
    assert rig.names(await rig.synced()) == [MAIN]
    assert any(".patch-" in key for key in rig.store.keys("put")) is copies
    assert rig.names(await rig.synced()) == [f"{MAIN}.base", f"{MAIN}.patch-01"]


@pytest.mark.parametrize("layer", [0, 1, 2])
async def test_a_patch_does_not_build_on_a_layer_that_was_deleted_from_the_bucket(rig, layer):
    await rig.upload()
    await rig.synced()
    manifest = await rig.synced()
    del rig.bucket.objects[manifest.of("reflection")[0].layers[layer].key]
    rig.commit(rows=50)
    assert (await rig.sync()).success
    newest = rig.manifests[-1]
    assert rig.names(newest) == [MAIN]
    await rig.assert_restores(newest, rig.digest())


async def test_a_carried_over_patched_file_is_copied_or_downloaded_and_uploaded(rig):
    await rig.upload()
    manifest = await rig.synced()
    digest = rig.digest()
    rig.commit()
    rig.commit("knowledge_graph")
    rig.store.fail("copy", CopyUnsupported("not here"), times=9)
    assert (await rig.sync(upload_reflections=False)).success
    carried = rig.manifests[-1]
    (main,) = carried.of("reflection")
    assert (main.origin, main.carried_from) == ("carried", manifest.upload_id)
    assert rig.names(carried) == rig.names(manifest)
    await rig.assert_restores(carried, digest)


async def test_a_database_whose_layer_is_missing_is_not_carried_over_and_is_sent_whole_later(rig):
    await rig.upload()
    manifest = await rig.synced()
    rig.commit("knowledge_graph")
    del rig.bucket.objects[manifest.of("reflection")[0].layers[1].key]
    result = await rig.sync(upload_reflections=False)
    assert result.incomplete.keys() == {"reflection"}
    assert (await rig.sync()).success
    assert rig.names(rig.manifests[-1]) == [MAIN]
    await rig.assert_restores(rig.manifests[-1], rig.digest())


async def test_a_patch_is_sent_although_another_database_looked_damaged_at_first(rig, monkeypatch):
    """The upload goes on with another copy of that database. The patch is made again."""
    await rig.upload()
    rig.commit(rows=50)
    rig.commit("knowledge_graph")
    torn = []

    async def torn_once(copy: Path, **_) -> Verdict:
        if torn or copy.name != "knowledge_graph.duckdb":
            return Verdict(verified=True)
        await until(lambda: any(".patch-" in key for key in rig.objects))
        torn.append(copy)
        return Verdict(verified=False, reason="torn", damaged=True)

    monkeypatch.setattr(snapshot_taker, "verify", torn_once)
    with capture_logs() as logs:
        manifest = await rig.upload()
    assert torn
    assert "patch_failed" not in [line["event"] for line in logs]
    assert rig.names(manifest) == [f"{MAIN}.base", f"{MAIN}.patch-01"]


async def test_an_upload_that_was_interrupted_after_its_patch_does_not_send_it_again(rig):
    await rig.upload()
    rig.commit(rows=50)
    rig.store.fail("put", StoreError("503", transient=True), key="manifest.json", times=1)
    manifest = await rig.upload()
    sent = [key for key in rig.store.keys("put") if ".patch-" in key]
    assert sent == [manifest.of("reflection")[0].layers[-1].key]


async def test_an_adopted_patched_upload_is_the_base_of_the_next_patch(rig):
    await rig.upload()
    await rig.synced()
    for path in (rig.tmp_path / "state").glob("ledger.sqlite*"):
        path.unlink()
    manifest = await rig.synced()
    assert rig.names(manifest) == [f"{MAIN}.base", f"{MAIN}.patch-01", f"{MAIN}.patch-02"]


async def test_an_upload_that_is_adopted_after_a_cut_is_the_base_of_the_next_patch(rig):
    rig.store.fail("put", StoreError("cut", transient=True), key="manifest.json", after=True, times=9)
    rig.store.fail("get", StoreError("cut", transient=True), key="manifest.json", times=1)
    first = await rig.upload()
    assert rig.names(first) == [MAIN]
    assert rig.names(await rig.synced()) == [f"{MAIN}.base", f"{MAIN}.patch-01"]


async def test_a_database_with_the_longest_name_is_patched_and_verified(rig, monkeypatch):
    monkeypatch.setattr(upload_plan, "LEAST_PATCHED_BYTES", 0)
    name = "knowledge_graph_" + "x" * (249 - len("knowledge_graph_") - len(".duckdb")) + ".duckdb"
    (rig.data / "knowledge_graph.duckdb").rename(rig.data / name)
    assert (await rig.sync()).success
    with session_buddy.opened(rig.data / name) as base:
        base.execute("CREATE TABLE more AS SELECT * FROM range(9)")
    assert (await rig.sync()).success
    manifest = rig.manifests[-1]
    assert len(rig.names(manifest, name.removesuffix(".duckdb"))) == 2
    assert not await rig.deep_problems(manifest)


async def test_the_mirror_survives_a_data_directory_without_databases(rig, tmp_path):
    await rig.upload()
    rig.data.rename(tmp_path / "elsewhere")
    rig.data.mkdir()
    await rig.sync()
    rig.data.rmdir()
    (tmp_path / "elsewhere").rename(rig.data)
    assert rig.names(await rig.synced()) == [f"{MAIN}.base", f"{MAIN}.patch-01"]


async def test_a_prune_takes_nothing_from_the_later_patched_uploads(rig):
    for _ in range(3):
        newest = await rig.synced()
    pruner = Pruner(Catalog(rig.store, "laptop"), KeepRules(last=1, daily=0, weekly=0, monthly=0), rig.home().clock)
    pruned = await pruner.carry_out(await pruner.plan({}), {})
    assert (len(pruned.upload_ids), pruned.error) == (2, None)
    assert [manifest.upload_id for manifest in rig.manifests] == [newest.upload_id]
    await rig.assert_restores(newest, rig.digest())
    assert rig.names(await rig.synced()) == [f"{MAIN}.base", f"{MAIN}.patch-01", f"{MAIN}.patch-02", f"{MAIN}.patch-03"]


async def test_react_reads_the_rows_of_a_patched_database(rig, tmp_path):
    await rig.upload()
    rig.remember("later")
    manifest = await rig.synced()
    assert len(rig.names(manifest)) == 2
    akosha, clock = FakeAkosha(), ManualClock()
    push = MemoryPush(
        sink=akosha, ledger=inline_ledger(clock).memories(), clock=clock, batch_size=100, missing_embedding="send"
    )
    ingester = UploadIngester(
        store=rig.store,
        unpacker=Unpacker(tmp_path),
        patcher=ZstdPatcher(),
        push=push,
        reader=DuckdbMemoryReader(),
        memories_file=JsonMemoriesFile(tmp_path),
        zone=lambda _name: UTC,
        endpoint="akosha",
        bucket="bucket",
        standstill_seconds=60,
    )
    async with Turns(clock).one() as turn:
        await ingester.database(manifest, "reflection", await akosha.connect(), turn)
    assert any(":later:" in each for each in akosha.rows)
    assert len(akosha.rows) == sum(manifest.rows["reflection"][name] for name in ("conversations_v2", "reflections_v2"))


@pytest.fixture
def always_patched(monkeypatch):
    monkeypatch.setattr(upload_plan, "LEAST_PATCHED_BYTES", 0)
    monkeypatch.setattr(patching, "largest_patch", lambda *_: 2**30)


async def test_a_file_that_shrank_is_patched(rig):
    rig.change("CREATE TABLE larger AS SELECT n, md5(random()::VARCHAR) AS text FROM range(80000) AS rows(n)")
    size = (await rig.upload()).of("reflection")[0].raw_size
    rig.change("DROP TABLE larger")
    rig.change("CHECKPOINT")
    manifest = await rig.upload()
    assert rig.names(manifest) == [f"{MAIN}.base", f"{MAIN}.patch-01"]
    assert manifest.of("reflection")[0].raw_size < size


async def test_a_file_with_a_new_header_version_is_patched(rig, always_patched):
    before = await rig.upload()
    newer = rig.tmp_path / MAIN
    with session_buddy.opened(rig.data / MAIN) as base:
        base.execute(f"ATTACH '{newer}' AS newer (STORAGE_VERSION 'latest')")
        base.execute("CREATE TABLE newer.large AS SELECT * FROM large")
        base.execute("DETACH newer")
    newer.replace(rig.data / MAIN)
    manifest = await rig.upload()
    versions = [each.of("reflection")[0].storage_version for each in (before, manifest)]
    assert versions[0] < versions[1]
    assert rig.names(manifest) == [f"{MAIN}.base", f"{MAIN}.patch-01"]


@pytest.mark.skipif(not session_buddy.REAL.is_dir(), reason="the databases of Session-Buddy are not here")
async def test_a_database_with_an_hnsw_index_is_patched(rig, always_patched):
    """DuckDB cannot checkpoint it without an extension. For a patch it is a file like any other."""
    await rig.upload()
    for path in (session_buddy.REAL / "hnsw").iterdir():
        shutil.copyfile(path, rig.data / path.name)
    manifest = await rig.upload()
    assert rig.names(manifest) == [f"{MAIN}.base", f"{MAIN}.patch-01", f"{MAIN}.wal"]
    assert not await rig.deep_problems(manifest)


async def test_a_restore_that_was_cut_downloads_only_the_layers_that_it_lacks(rig):
    for _ in range(3):
        manifest = await rig.synced()
    base, first, last = (layer.key for layer in manifest.of("reflection")[0].layers)
    rig.store.fail("get", StoreError("cut", transient=True), key=last)
    before = len(rig.store.keys("get"))
    destination = rig.tmp_path / "cut"
    with pytest.raises(StoreError, match="cut"):
        await rig.restore(manifest, destination)
    await rig.restore(manifest, destination)
    asked = [key for key in rig.store.keys("get")[before:] if key in (base, first, last)]
    assert asked == [base, first, last, last]
    assert hashlib.sha256((destination / MAIN).read_bytes()).hexdigest() == rig.digest()
    assert {path.name for path in destination.iterdir()} == {MAIN, "knowledge_graph.duckdb"}


@pytest.mark.parametrize("layer", [0, 1])
async def test_verification_names_the_damaged_layer_and_a_restore_refuses_it(rig, layer):
    await rig.upload()
    manifest = await rig.synced()
    assert not await rig.deep_problems(manifest)
    key = manifest.of("reflection")[0].layers[layer].key
    data, metadata = rig.bucket.objects[key]
    rig.bucket.objects[key] = (data[:100] + bytes([data[100] ^ 1]) + data[101:], metadata)
    assert list(await rig.deep_problems(manifest)) == [key.rpartition("/")[2]]
    with pytest.raises(RestoreError, match="does not match its manifest") as refused:
        await rig.assert_restores(manifest, "")
    assert "--only" in refused.value.hint
    assert list((await Verifier(Catalog(rig.store, "laptop"), rig.home().clock).shallow(manifest.upload_id)).damaged)


async def test_a_mirror_with_other_bytes_is_not_used(rig):
    await rig.upload()
    (stored,) = (
        path for path in (rig.tmp_path / "state" / "mirror" / "reflection").iterdir() if rig.digest() in path.name
    )
    with stored.open("r+b") as file:
        file.seek(2**19)
        byte = file.read(1)
        file.seek(2**19)
        file.write(bytes([byte[0] ^ 1]))
    assert rig.names(await rig.synced()) == [MAIN]
