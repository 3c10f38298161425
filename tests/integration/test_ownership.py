"""Ownership of a target: machines with the same system ID, copied state directories and unmounted disks.

Each machine has its own data directory, state directory and machine ID. All machines run in one process and use one
target. Syncs are those of the `sync` command.
"""

import asyncio
import copy
import json
import shutil
from collections import defaultdict
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.s3 import S3Store
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import BucketContents
from agent.application.ingest.service import systems_in
from agent.application.sync import bucket_uploads, confirmed_upload, ownership
from agent.application.sync.bucket_uploads import BucketUploads
from agent.application.sync.ownership import NOT_MOUNTED, WARNING
from agent.bootstrap import archive, home as home_bootstrap, methods
from agent.bootstrap.archive import open_prune
from agent.domain import naming
from agent.domain.errors import NotOwner
from agent.domain.events import SyncFailed, SyncSkipped, SyncSucceeded
from agent.domain.identity import Owner
from agent.domain.manifest import Manifest
from agent.domain.retention import KeepRules
from agent.entrypoints import status_view
from agent.entrypoints.status_view import gather_status
from agent.entrypoints.sync_client import SyncClient
from agent.settings import Settings
from tests.support import session_buddy
from tests.support.faulty_store import FaultyStore
from tests.support.memory_source import ListedReader
from tests.support.memory_store import MemoryStore

pytest_plugins = ["tests.support.servers.fixtures"]

OWNER = "systems/laptop/owner.json"
UPLOADS = "systems/laptop/uploads/"
ALL_BUT_THE_LAST = KeepRules(last=1, daily=0, weekly=0, monthly=0)


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("databases")
    session_buddy.create(folder, commits=3, entities=2)
    return folder


class Target:
    """The store that all machines use. `raw_store` is the same store without injected faults."""

    def __init__(self, raw_store, settings):
        self.raw_store, self.settings = raw_store, settings
        self.store = FaultyStore(raw_store)

    async def objects(self):
        return {item.key: await self.read(item.key) async for item in self.raw_store.list("")}

    async def read(self, key):
        return b"".join([piece async for piece in self.raw_store.get(key)])

    async def uploads(self):
        keys = [item.key async for item in self.raw_store.list("systems/")]
        return [Manifest.decode(await self.read(key)) for key in keys if key.endswith("/manifest.json")]

    async def owner(self, key=OWNER):
        return Owner.decode(await self.read(key))


@pytest.fixture(params=["memory"])
async def target(request, tmp_path, monkeypatch):
    if request.param == "memory":
        made = Target(MemoryStore(), {"cloud_endpoint": "file:///bucket"})
    elif request.param == "directory":
        made = Target(DirectoryStore(tmp_path / "nas"), {"cloud_endpoint": (tmp_path / "nas").as_uri()})
    else:
        request.getfixturevalue("aws")
        server = request.getfixturevalue(request.param)
        bucket = server.new_bucket()
        raw_store = S3Store(bucket=bucket, endpoint=server.endpoint, region="auto")
        made = Target(raw_store, {"cloud_endpoint": server.endpoint, "cloud_bucket": bucket})
    for module in (methods, archive, status_view):
        monkeypatch.setattr(module, "object_store", lambda *_, **__: made.store)
    monkeypatch.setattr(FaultyStore, "aclose", _stays_open)
    monkeypatch.setattr(methods, "DuckdbMemoryReader", lambda **_: ListedReader(defaultdict(list)))
    taker = home_bootstrap.DuckdbSnapshotTaker
    monkeypatch.setattr(home_bootstrap, "DuckdbSnapshotTaker", lambda *a, **how: taker(*a, verify=False, **how))
    monkeypatch.setattr(home_bootstrap, "machine_id", lambda state: (state.parent / "machine-id").read_text())
    monkeypatch.setattr(home_bootstrap.socket, "gethostname", lambda: "laptop")
    yield made
    await made.raw_store.aclose()


async def _stays_open(_self):
    pass


on_all_stores = pytest.mark.parametrize("target", ["memory", "directory", "moto", "rclone"], indirect=True)
on_memory_and_s3 = pytest.mark.parametrize("target", ["memory", "moto"], indirect=True)
on_directories = pytest.mark.parametrize("target", ["directory"], indirect=True)


@pytest.fixture
def always_checked(monkeypatch):
    """Make each sync that a person requests check the target, as an hour after the last check."""
    monkeypatch.setattr(confirmed_upload, "CONFIRMED_FOR", timedelta(0))


class Machine:
    """One machine with one agent. An empty `system_id` means the host name, which is `laptop` on all machines."""

    def __init__(self, folder: Path, target: Target, databases: Path, *, system_id: str = "laptop") -> None:
        self.folder, self.target, self.system_id = folder, target, system_id
        self.data, self.state = folder / "data", folder / "state"
        self.more = {}
        folder.mkdir()
        shutil.copytree(databases, self.data)
        (folder / "machine-id").write_text(folder.name)

    def settings(self) -> Settings:
        return Settings(
            **self.target.settings,
            system_id=self.system_id,
            agent_data_dir=self.data,
            agent_state_dir=self.state,
            retry_backoff_seconds=0.05,
            enable_fallback=False,
            agent_prune=False,
            **self.more,
        )

    async def sync(self, **flags):
        client = await SyncClient.prepare(self.settings(), **flags)
        async with asyncio.timeout(90):
            return await client.result()

    def change(self) -> None:
        with session_buddy.opened(self.data / "reflection.duckdb") as base:
            base.execute("CREATE TABLE IF NOT EXISTS extra(n INTEGER)")
            base.execute("INSERT INTO extra SELECT 1")

    def lose_ledger(self) -> None:
        for path in self.state.glob("ledger*"):
            path.unlink()

    def forget_ownership(self) -> None:
        """Delete the claim from the ledger, as in a ledger of an earlier version."""
        import sqlite3

        with sqlite3.connect(self.state / "ledger.sqlite") as base:
            base.execute("DELETE FROM notes WHERE key LIKE 'owner %'")

    async def warnings(self):
        """Return the ownership warnings of `status`."""
        status = await gather_status(self.settings())
        return [warning.message for warning in status.warnings if warning.code in (WARNING, NOT_MOUNTED)]

    async def prune(self, rules=ALL_BUT_THE_LAST):
        home = home_bootstrap.Home.of(self.settings())
        identity, machine = home.prepare(), home.machine()
        ledger = await home.read_ledger() if await home.has_ledger() else None
        try:
            async with open_prune(self.settings(), identity, machine, rules, home.clock, ledger) as opened:
                return await opened.pruner.carry_out(
                    await opened.pruner.plan(await opened.spared()), await opened.spared()
                )
        finally:
            if ledger is not None:
                await ledger.aclose()


@pytest.fixture
def machine(tmp_path, target, databases):
    def made(name, **how):
        return Machine(tmp_path / name, target, databases, **how)

    return made


def of_another_agent(manifest: Manifest) -> Manifest:
    """Return the manifest of another agent's later upload, of nothing."""
    other = {"upload_id": "99981231_235959_laptop", "agent_id": "b" * 32, "request_id": "another"}
    return replace(manifest, **other, parts=(), memories=None)


def assert_refused(result, *texts):
    assert isinstance(result, SyncFailed), result
    for text in texts:
        assert text in result.errors[-1].error


@on_all_stores
async def test_the_first_sync_claims_the_target_before_it_uploads_anything(machine, target):
    one = machine("one")
    result = await one.sync()
    assert isinstance(result, SyncSucceeded)
    owner = await target.owner()
    assert (owner.system_id, owner.host) == ("laptop", "laptop")
    written = [key for call, key in target.store.calls if call in ("create", "put")]
    assert written[0] == OWNER
    one.change()
    assert isinstance(await one.sync(), SyncSucceeded)
    assert await target.owner() == owner, "claimed once"


@on_memory_and_s3
async def test_an_explicit_id_of_another_machine_is_refused_and_nothing_is_written(machine, target):
    one, two = machine("one"), machine("two")
    await one.sync()
    before = await target.objects()
    result = await two.sync()
    assert_refused(result, "belongs to laptop", "--take-over", "akosha_system_id")
    assert await target.objects() == before
    assert "belongs to laptop" in (await two.warnings())[0]
    with pytest.raises(NotOwner):
        await two.prune()
    assert await target.objects() == before


@on_all_stores
async def test_one_of_two_machines_that_claim_at_the_same_moment_uploads(machine, target):
    one, two = machine("one"), machine("two")
    results = await asyncio.gather(one.sync(), two.sync())
    won = [result for result in results if isinstance(result, SyncSucceeded)]
    assert len(won) == 1, results
    (manifest,) = await target.uploads()
    assert manifest.upload_id == won[0].upload_id
    assert (await target.owner()).agent_id == manifest.agent_id


@on_memory_and_s3
@pytest.mark.usefixtures("always_checked")
async def test_a_take_over_stops_the_other_machine_and_both_report_it(machine, target):
    one, two = machine("one"), machine("two")
    await one.sync()
    assert_refused(await two.sync())
    assert isinstance(await two.sync(take_over=True), SyncSucceeded | SyncSkipped)
    two.change()
    assert isinstance(await two.sync(), SyncSucceeded)
    assert await two.warnings() == []
    before = await target.objects()
    one.change()
    assert_refused(await one.sync(), "was taken over by laptop", "--take-over")
    assert await target.objects() == before
    assert "taken over" in (await one.warnings())[0]
    assert isinstance(await one.sync(take_over=True), SyncSucceeded)
    newest = (await target.uploads())[-1]
    assert {part.origin for part in newest.parts} == {"sent"}, "nothing is copied from the other machine's upload"
    assert_refused(await two.sync(), "taken over")


async def test_a_take_over_during_an_upload_leaves_it_without_a_manifest(machine, target):
    one, two = machine("one"), machine("two")
    await one.sync()
    one.change()
    stalled = target.store.stall("put", key="reflection.duckdb")
    uploading = asyncio.create_task(one.sync())
    await asyncio.wait_for(stalled.wait(), 60)
    assert isinstance(await two.sync(take_over=True), SyncSkipped | SyncSucceeded)
    uploading.cancel()
    await asyncio.wait({uploading})
    manifests = await target.uploads()
    assert_refused(await one.sync(), "taken over")
    assert await target.uploads() == manifests


@pytest.mark.parametrize("changed", [False, True])
async def test_a_take_over_succeeds_if_the_former_owner_finishes_an_upload_meanwhile(
    machine, target, monkeypatch, changed
):
    monkeypatch.setattr(ownership, "SETTLE_SECONDS", 0)
    one, two = machine("one"), machine("two")
    await one.sync()
    for each in (two, one):
        assert isinstance(await each.sync(take_over=True), SyncSucceeded | SyncSkipped)
    if changed:
        two.change()
    finished, create = of_another_agent((await target.uploads())[0]), target.raw_store.create

    async def create_and_finish(*args, **how):
        target.raw_store.objects[finished.key] = finished.encode(), {}
        return await create(*args, **how)

    monkeypatch.setattr(target.raw_store, "create", create_and_finish)
    taken = await two.sync(take_over=True)
    assert isinstance(taken, SyncSucceeded)
    assert taken.upload_id > finished.upload_id
    two.change()
    assert isinstance(await two.sync(), SyncSucceeded)


@pytest.mark.parametrize("request_of", ["take_over", "new_target"])
async def test_a_ledger_that_starts_over_removes_the_objects_of_its_unfinished_upload(machine, target, request_of):
    one, two = machine("one"), machine("two")
    await one.sync()
    one.change()
    stalled = target.store.stall("put", key="manifest.json")
    uploading = asyncio.create_task(one.sync())
    await asyncio.wait_for(stalled.wait(), 60)
    uploading.cancel()
    await asyncio.wait({uploading})
    if request_of == "take_over":
        two.change()
        assert isinstance(await two.sync(take_over=True), SyncSucceeded)
    else:
        uploaded = [key for manifest in await target.uploads() for key in _keys_of(manifest)]
        await target.raw_store.delete([OWNER, *uploaded])
    assert isinstance(await one.sync(**{request_of: True}), SyncSucceeded)
    keys = {OWNER, *(key for manifest in await target.uploads() for key in _keys_of(manifest))}
    assert {*await target.objects()} == keys


def _keys_of(manifest):
    named = [*manifest.parts, *([manifest.memories] if manifest.memories else [])]
    return [naming.manifest_key(manifest.system_id, manifest.upload_id), *(part.key for part in named)]


async def test_the_owner_is_compared_again_before_the_manifest(machine, target):
    one, two = machine("one"), machine("two")
    await one.sync()
    one.change()
    overtaken = await target.owner()
    put = target.raw_store.put

    async def put_and_be_overtaken(key, body, **how):
        if key.endswith("reflection.duckdb"):
            other = Owner.new("laptop", two_machine, "b" * 32, overtaken.claimed_at)
            target.raw_store.objects[OWNER] = other.encode(), {}
        return await put(key, body, **how)

    two_machine = home_bootstrap.Home.of(two.settings()).machine()
    target.raw_store.put = put_and_be_overtaken
    assert_refused(await one.sync(), "taken over")
    assert len(await target.uploads()) == 1


@on_memory_and_s3
async def test_an_upgrade_claims_uploads_known_by_the_ledger_or_the_agent_id(machine, target):
    one = machine("one")
    await one.sync()
    for lost_ledger in (False, True):
        await target.raw_store.delete([OWNER])
        if lost_ledger:
            one.lose_ledger()
        else:
            one.forget_ownership()
        one.change()
        assert isinstance(await one.sync(), SyncSucceeded)
        newest = (await target.uploads())[-1]
        assert (await target.owner()).agent_id == newest.agent_id
        assert {part.name: part.origin for part in newest.parts}["knowledge_graph.duckdb"] == "copied"
        one.change()


async def test_uploads_of_another_agent_without_an_owner_are_not_claimed(machine, target):
    one, two = machine("one"), machine("two")
    await one.sync()
    await target.raw_store.delete([OWNER])
    before = await target.objects()
    assert_refused(await two.sync(), "belong to another agent", "--take-over")
    with pytest.raises(NotOwner):
        await two.prune()
    assert await target.objects() == before
    assert isinstance(await two.sync(take_over=True), SyncSucceeded | SyncSkipped)


async def test_an_upgrade_is_refused_if_another_machine_uploaded_last(machine, target):
    one, two = machine("one"), machine("two")
    await one.sync()
    await two.sync(take_over=True)
    two.change()
    await two.sync()
    await target.raw_store.delete([OWNER])
    one.forget_ownership()
    one.change()
    assert_refused(await one.sync(), "belong to another agent")


async def test_a_machine_with_a_lost_state_directory_claims_its_uploads_again(machine, target):
    one = machine("one")
    await one.sync()
    before = await target.owner()
    shutil.move(one.state, one.folder / "old-state")
    one.change()
    assert isinstance(await one.sync(), SyncSucceeded)
    assert {part.name: part.origin for part in (await target.uploads())[-1].parts} == {
        "knowledge_graph.duckdb": "copied",
        "reflection.duckdb": "sent",
    }
    assert (await target.owner()).claim_id != before.claim_id
    one.state.rename(one.folder / "new-state")
    shutil.move(one.folder / "old-state", one.state)
    one.change()
    assert_refused(await one.sync(), "taken over", "state directory")


@on_memory_and_s3
async def test_a_second_state_directory_of_a_machine_is_refused_while_the_first_exists(machine, target):
    one = machine("one")
    await one.sync()
    second = copy.copy(one)
    second.state = one.folder / "second state"
    before = await target.objects()
    named = f"another state directory on this machine: {one.state}"
    assert_refused(await second.sync(), named, f"--state-dir {one.state}", "--take-over", "akosha_system_id")
    with pytest.raises(NotOwner, match="another state directory"):
        await second.prune()
    assert await target.objects() == before
    assert named in (await second.warnings())[0]
    one.change()
    assert isinstance(await one.sync(), SyncSucceeded)
    assert isinstance(await second.sync(take_over=True), SyncSucceeded | SyncSkipped)
    one.change()
    assert_refused(await one.sync(), "was taken over by another state directory", f"--state-dir '{second.state}'")
    shutil.rmtree(second.state)
    assert_refused(await one.sync(), "was taken over")
    assert isinstance(await one.sync(take_over=True), SyncSucceeded)


async def test_a_new_state_directory_takes_over_from_a_deleted_one_and_logs_it(machine, target):
    one = machine("one")
    await one.sync()
    second = copy.copy(one)
    second.state = one.folder / "second"
    shutil.rmtree(one.state)
    with structlog.testing.capture_logs() as logged:
        assert isinstance(await second.sync(), SyncSucceeded | SyncSkipped)
    (line,) = [line for line in logged if line["event"] == "target_taken_over"]
    assert line["log_level"] == "warning"
    assert str(one.state) in line["reason"]
    assert (await target.owner()).state_dir == str(second.state)


@pytest.mark.usefixtures("always_checked")
async def test_a_moved_state_directory_and_an_upgrade_store_the_path(machine, target):
    one = machine("one")
    await one.sync()
    owner = await target.owner()
    one.state.rename(one.folder / "moved")
    one.state = one.folder / "moved"
    assert isinstance(await one.sync(), SyncSkipped)
    assert await target.owner() == replace(owner, state_dir=str(one.state))
    target.raw_store.objects[OWNER] = replace(owner, state_dir="").encode(), {}
    assert isinstance(await one.sync(), SyncSkipped)
    assert await target.owner() == replace(owner, state_dir=str(one.state))
    copied = copy.copy(one)
    copied.state = one.folder / "copied"
    shutil.copytree(one.state, copied.state)
    assert isinstance(await copied.sync(), SyncSkipped)
    assert (await target.owner()).state_dir == str(one.state), "a copy does not replace the path of the original"


@pytest.mark.parametrize("with_memory_of_claim", [True, False])
async def test_a_copied_state_directory_is_detected(machine, target, with_memory_of_claim):
    one = machine("one")
    await one.sync()
    shutil.copytree(one.state, one.folder / "copy")
    one.change()
    assert isinstance(await one.sync(), SyncSucceeded)
    one.state.rename(one.folder / "original")
    (one.folder / "copy").rename(one.state)
    if not with_memory_of_claim:
        one.forget_ownership()
    before = await target.objects()
    one.change()
    assert_refused(await one.sync(), "does not know", "copied", "--take-over")
    with pytest.raises(NotOwner):
        await one.prune()
    assert await target.objects() == before
    assert isinstance(await one.sync(take_over=True), SyncSucceeded)
    one.change()
    assert isinstance(await one.sync(), SyncSucceeded)


async def test_a_refused_target_stays_refused_until_no_other_agent_has_uploaded_there(machine, target):
    """An agent that does not read owner.json, like one of an earlier version, has uploaded under the same ID."""
    one = machine("one")
    await one.sync()
    (manifest,) = await target.uploads()
    newer = of_another_agent(manifest)
    target.raw_store.objects[newer.key] = newer.encode(), {}
    one.change()
    assert_refused(await one.sync(), "does not know")
    target.store.calls.clear()
    with structlog.testing.capture_logs() as logged:
        assert_refused(await one.sync(), "does not know")
    assert [line["event"] for line in logged if line["event"] in ("target_ownership_restored", "snapshot_taken")] == []
    await target.raw_store.delete([newer.key])
    assert isinstance(await one.sync(), SyncSucceeded)
    assert await one.warnings() == []


async def test_a_state_directory_on_another_machine_is_refused(machine, target):
    one = machine("one")
    await one.sync()
    (one.folder / "machine-id").write_text("another board")
    one.change()
    assert_refused(await one.sync(), "belongs to", "a reinstalled OS")
    assert isinstance(await one.sync(take_over=True), SyncSucceeded)
    newest = (await target.uploads())[-1]
    assert {part.name: part.origin for part in newest.parts}["knowledge_graph.duckdb"] == "copied", (
        "no other agent has uploaded since"
    )


@on_memory_and_s3
async def test_a_default_system_id_that_is_taken_gets_a_suffix_and_keeps_it(machine, target):
    one, two = machine("one", system_id=""), machine("two", system_id="")
    assert isinstance(await one.sync(), SyncSucceeded)
    before = await target.objects()
    result = await two.sync()
    assert isinstance(result, SyncSucceeded)
    assert result.system_id.startswith("laptop-")
    assert len(result.system_id) == len("laptop-3f2a")
    after = await target.objects()
    assert before.items() <= after.items()
    assert {key.split("/")[1] for key in after} == {"laptop", result.system_id}
    two.change()
    assert (await two.sync()).system_id == result.system_id
    assert json.loads((two.state / "identity.json").read_bytes())["system_id"] == result.system_id
    shutil.rmtree(two.state)
    assert (await two.sync()).system_id == result.system_id, "the same machine gets the same suffix"


async def test_a_suffix_that_is_taken_is_replaced_by_a_longer_one(machine, target):
    one, two = machine("one", system_id=""), machine("two", system_id="")
    await one.sync()
    theirs = home_bootstrap.Home.of(one.settings()).machine()
    suffixed = f"laptop-{home_bootstrap.Home.of(two.settings()).machine().digest[:4]}"
    owner = Owner.new(suffixed, theirs, "c" * 32, (await target.owner()).claimed_at)
    target.raw_store.objects[owner.key] = owner.encode(), {}
    result = await two.sync()
    assert isinstance(result, SyncSucceeded)
    assert len(result.system_id) == len("laptop-3f2a3f2a")


async def test_a_default_system_id_that_has_uploads_of_its_own_is_refused_not_renamed(machine, target):
    one, two = machine("one", system_id=""), machine("two", system_id="")
    await one.sync()
    two.system_id = "laptop"
    await two.sync(take_over=True)
    one.change()
    assert_refused(await one.sync(), "taken over")
    assert json.loads((one.state / "identity.json").read_bytes())["system_id"] == "laptop"


@on_memory_and_s3
async def test_two_data_directories_of_one_machine_have_two_owners(machine, target):
    one, two = machine("one"), machine("two")
    (two.folder / "machine-id").write_text("one")
    await one.sync()
    assert_refused(await two.sync(), "belongs to laptop")


async def test_a_symlink_to_the_data_directory_does_not_change_the_machine(machine):
    one = machine("one")
    await one.sync()
    one.data.rename(one.folder / "elsewhere")
    home = home_bootstrap.Home.of(one.settings())
    direct = home.machine()
    one.data.symlink_to(one.folder / "elsewhere")
    assert home_bootstrap.Home.of(one.settings()).machine() != direct
    one.data = one.folder / "elsewhere"
    linked = home_bootstrap.Home.of(one.settings()).machine()
    one.data = one.folder / "data"
    assert home_bootstrap.Home.of(one.settings()).machine() == linked


@on_directories
@pytest.mark.parametrize("mount_point_stays", [True, False])
async def test_an_unmounted_disk_is_refused_and_nothing_is_written_to_its_mount_point(
    machine, tmp_path, mount_point_stays
):
    one = machine("one")
    await one.sync()
    (tmp_path / "nas").rename(tmp_path / "disk")
    if mount_point_stays:
        (tmp_path / "nas").mkdir()
    for _ in range(2):
        assert_refused(await one.sync(), "is the disk mounted?", "--new-target", "mkdir -p")
        one.change()
    with pytest.raises(NotOwner, match="mounted"):
        await one.prune()
    assert "is the disk mounted?" in (await one.warnings())[0]
    assert not (tmp_path / "nas").exists() or not [*(tmp_path / "nas").iterdir()]
    if mount_point_stays:
        (tmp_path / "nas").rmdir()
    (tmp_path / "disk").rename(tmp_path / "nas")
    assert await one.warnings() == [], "without a sync"
    assert isinstance(await one.sync(), SyncSucceeded)


@on_directories
async def test_a_directory_without_a_parent_is_reported_with_a_mkdir_hint(machine, target, tmp_path):
    target.settings = {"cloud_endpoint": (tmp_path / "mnt" / "nas").as_uri(), "cloud_bucket": "akosha"}
    target.raw_store = DirectoryStore(tmp_path / "mnt" / "nas" / "akosha")
    target.store._store = target.raw_store
    one = machine("one")
    assert_refused(await one.sync(), "cannot be reached", f"mkdir -p {tmp_path}/mnt/nas/akosha")
    assert not (tmp_path / "mnt").exists()
    (tmp_path / "mnt" / "nas").mkdir(parents=True)
    assert isinstance(await one.sync(), SyncSucceeded), "the first upload makes the directory itself"
    (tmp_path / "mnt").rename(tmp_path / "unmounted")
    one.change()
    hint = f"mount it; if the disk or directory was replaced on purpose: mkdir -p {tmp_path}/mnt/nas/akosha, then"
    assert_refused(await one.sync(), "cannot be reached", hint)


@on_directories
async def test_an_upgrade_with_an_unmounted_disk_is_refused(machine, tmp_path):
    one = machine("one")
    await one.sync()
    one.forget_ownership()
    (tmp_path / "nas").rename(tmp_path / "disk")
    (tmp_path / "nas").mkdir()
    assert_refused(await one.sync(), "is the disk mounted?")
    assert_refused(await one.sync(take_over=True), "is the disk mounted?")
    assert [*(tmp_path / "nas").iterdir()] == []


@on_directories
@pytest.mark.parametrize("made", [True, False])
async def test_a_new_target_gets_a_complete_upload(machine, target, tmp_path, made):
    one = machine("one")
    await one.sync()
    (tmp_path / "nas").rename(tmp_path / "disk")
    if made:
        (tmp_path / "nas").mkdir()
    assert isinstance(await one.sync(new_target=True), SyncSucceeded)
    (manifest,) = await target.uploads()
    assert {part.origin for part in manifest.parts} == {"sent"}
    assert isinstance(await one.sync(), SyncSkipped)
    shutil.rmtree(tmp_path / "nas")
    (tmp_path / "disk").rename(tmp_path / "nas")
    one.change()
    assert_refused(await one.sync(), "taken over")


@on_directories
async def test_a_disk_with_uploads_of_another_machine_is_refused_as_a_new_target(machine, tmp_path):
    one, two = machine("one"), machine("two")
    await one.sync()
    (tmp_path / "nas").rename(tmp_path / "disk")
    await two.sync()
    assert_refused(await one.sync(new_target=True), "taken over by laptop")


@pytest.mark.parametrize("target", ["memory", "moto", "rclone"], indirect=True)
@pytest.mark.usefixtures("always_checked")
async def test_an_emptied_bucket_is_refused_until_new_target_is_requested(machine, target):
    one = machine("one")
    await one.sync()
    await target.raw_store.delete([*await target.objects()])
    assert_refused(await one.sync(), "owner.json is missing", "--new-target")
    assert await target.objects() == {}
    assert isinstance(await one.sync(new_target=True), SyncSucceeded)
    (manifest,) = await target.uploads()
    assert {part.origin for part in manifest.parts} == {"sent"}


@pytest.mark.usefixtures("always_checked")
async def test_deleted_uploads_are_sent_again_if_the_owner_still_exists(machine, target):
    one = machine("one")
    await one.sync()
    await target.raw_store.delete([key for key in await target.objects() if key != OWNER])
    assert isinstance(await one.sync(), SyncSucceeded)
    (manifest,) = await target.uploads()
    assert {part.origin for part in manifest.parts} == {"sent"}


@on_memory_and_s3
async def test_a_sync_cancelled_before_its_claim_is_in_the_ledger_is_continued_by_the_next(machine, target):
    one = machine("one")
    reached = target.store.stall("create", key=OWNER, after=True)
    killed = asyncio.create_task(one.sync())
    await asyncio.wait_for(reached.wait(), 60)
    killed.cancel()
    await asyncio.wait({killed})
    owner = await target.owner()
    assert isinstance(await one.sync(), SyncSucceeded)
    assert await target.owner() == owner


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 100_000])
async def test_an_invalid_owner_is_refused_until_a_take_over(machine, target, data):
    one = machine("one")
    await one.sync()
    target.raw_store.objects[OWNER] = data, {}
    one.change()
    assert_refused(await one.sync(), "is not valid", "--take-over")
    assert target.raw_store.objects[OWNER] == (data, {})
    assert isinstance(await one.sync(take_over=True), SyncSucceeded)


async def test_an_owner_of_a_newer_version_requires_an_update_not_a_take_over(machine, target):
    one = machine("one")
    await one.sync()
    target.raw_store.objects[OWNER] = b'{"version": 2}', {}
    one.change()
    result = await one.sync()
    assert_refused(result, "written by another version", "update akosha-agent")
    assert "--take-over" not in result.error


async def test_unneeded_flags_change_nothing(machine, target):
    one = machine("one")
    await one.sync()
    owner = await target.owner()
    assert isinstance(await one.sync(take_over=True, new_target=True), SyncSkipped)
    assert await target.owner() == owner


async def test_a_refused_sync_only_reads(machine, target):
    one, two = machine("one"), machine("two")
    await one.sync()
    calls = len(target.store.calls)
    assert_refused(await two.sync())
    assert {call for call, _ in target.store.calls[calls:]} <= {"is_available", "get", "aclose"}


async def test_owner_json_is_not_listed_as_an_upload_or_pruned(machine, target):
    """`react` lists with `BucketUploads`, `uploads` and `verify` with `Catalog`, `prune` with `BucketContents`."""
    one = machine("one")
    uploaded = await one.sync()
    assert await systems_in(target.raw_store) == ["laptop"]
    assert await BucketUploads(target.raw_store, "laptop").ids_after(None) == (
        [uploaded.upload_id],
        [uploaded.upload_id],
    )
    listing = await Catalog(target.raw_store, "laptop").listing()
    assert ([one.upload_id for one in listing.uploads], listing.unfinished) == ([uploaded.upload_id], ())
    contents = await BucketContents.of(
        "laptop", target.raw_store.list("systems/laptop/"), naming.upload_time(uploaded.upload_id)
    )
    assert [*contents.objects] == [uploaded.upload_id]
    pruned = await one.prune(KeepRules(last=1, daily=0, weekly=0, monthly=0))
    assert pruned.is_empty
    assert OWNER in await target.objects()


@pytest.mark.usefixtures("always_checked")
async def test_two_copies_of_an_agent_that_choose_the_same_upload_id_leave_one_upload(machine, target, monkeypatch):
    """A virtual machine is copied. The second copy does not replace or delete the manifest of the first, and fails.

    Objects that it replaced are found and sent again by the next sync of the first copy.
    """
    chosen = iter([f"20260101_00000{second}_laptop" for second in (0, 1, 1, 2)])
    monkeypatch.setattr(bucket_uploads.naming, "next_upload_id", lambda *_: next(chosen))
    one = machine("one")
    await one.sync()
    two = copy.copy(one)
    two.state = one.folder / "copy"
    shutil.copytree(one.state, two.state)
    one.change()
    between, copied = [], target.store.copy

    async def second_comes_between(*args, **how):
        if not between:
            between.append(None)
            one.change()
            between[0] = await two.sync()
        return await copied(*args, **how)

    monkeypatch.setattr(target.store, "copy", second_comes_between)
    assert_refused(await one.sync(), "does not know", "copied", "--take-over")
    assert isinstance(between[0], SyncSucceeded)
    assert [manifest.upload_id for manifest in await target.uploads()] == [
        "20260101_000000_laptop", between[0].upload_id
    ]  # fmt: skip
    assert (await target.uploads())[-1].request_id == between[0].request_id
    repaired = await two.sync()
    assert isinstance(repaired, SyncSucceeded)
    (manifest,) = [manifest for manifest in await target.uploads() if manifest.upload_id == repaired.upload_id]
    assert not await BucketUploads(target.raw_store, "laptop").damaged(manifest.upload_id, lambda: None)
