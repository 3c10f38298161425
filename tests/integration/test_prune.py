"""PruneLoop after uploads with a real ledger: it does not disturb syncs and reports missing permissions once."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.memory_bus import MemoryDurableBus
from agent.adapters.s3 import S3Store
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner
from agent.application.archive.prune_loop import NOTE, PruneLoop
from agent.application.status_warnings import warnings_in
from agent.application.sync.results import ResultRecorder, succeeded
from agent.domain import naming
from agent.domain.delivery_state import Target
from agent.domain.errors import NotPermitted, StoreError
from agent.domain.events import UploadsPruned
from agent.domain.identity import Identity
from agent.domain.retention import KeepRules
from agent.ports import Delivered
from tests.support import uploads, values
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryStore

pytest_plugins = ["tests.support.servers.fixtures"]

LAST_TWO = KeepRules(last=2, daily=0, weekly=0, monthly=0)
IDENTITY = Identity("agent-1", values.SYSTEM)


@dataclass
class World:
    clock: ManualClock
    store: FaultyStore
    ledger: SqliteLedger
    recorder: ResultRecorder
    bus: MemoryDurableBus
    target: Target = values.TARGET

    def prune_loop(self):
        pruning = Pruner(Catalog(self.store, values.SYSTEM), LAST_TWO, self.clock)
        return PruneLoop(
            pruning,
            target=self.target,
            identity=IDENTITY,
            ledger=self.ledger,
            recorder=self.recorder,
            clock=self.clock,
        )

    async def upload(self, second=0):
        """Put an upload and record it in the ledger."""
        manifest = values.manifest(second, f"r{second}", reflection=second)
        await uploads.put(self.store, manifest.upload_id)
        await self.ledger.mark_owed(self.target, ["reflection"])
        await self.ledger.begin(self.target, values.intent(second, f"r{second}", reflection=second))
        result = succeeded(manifest, method="cloud", location="memory://")
        seen = {"reflection": values.fingerprint("reflection", second)}
        await self.recorder.delivered(
            self.target, Delivered(manifest=manifest, fingerprints=seen, problems={}, result=result)
        )

    async def pruned(self):
        return [e.event for e in await self.ledger.history() if isinstance(e.event, UploadsPruned)]


@pytest.fixture
async def world(tmp_path):
    clock = ManualClock(values.NOON + timedelta(hours=1))
    bus = MemoryDurableBus(clock)
    ledger = await SqliteLedger.open(tmp_path / "ledger", CloudEventsCodec(), clock=clock)
    store = FaultyStore(MemoryStore())
    yield World(clock, store, ledger, ResultRecorder(ledger, bus, clock), bus)
    await ledger.aclose()
    await bus.aclose()


async def old_uploads(world, count=4):
    ids = uploads.days(count, newest=values.NOON - timedelta(days=1))
    for upload in ids:
        await uploads.put(world.store, upload)
    return ids


async def test_after_an_upload_old_ones_are_deleted_and_an_event_is_published(world):
    ids = await old_uploads(world)
    prune_loop = world.prune_loop()
    await prune_loop.after_sync(10)
    assert (await uploads.uploads_in(world.store))[0] == ids, "nothing is uploaded yet"
    await world.upload()
    await prune_loop.after_sync(10)
    assert await uploads.uploads_in(world.store) == ([values.upload_id(0), ids[0]], [])
    (event,) = await world.pruned()
    assert (event.upload_ids, event.kept, event.error) == (tuple(ids[1:]), 2, None)
    assert event in await world.ledger.outbox()
    await prune_loop.after_sync(10)
    assert len(await world.pruned()) == 1


async def test_an_upload_that_begins_while_the_bucket_is_listed_is_no_leftover(world, monkeypatch):
    """Its objects are hard links of old files, and its ID is ahead of the newest of them."""
    prune_loop, at = world.prune_loop(), 30 * 60
    await world.upload()
    listing, begun = world.store.list, []

    async def begin() -> None:
        begun.append(values.upload_id(at))
        await world.ledger.mark_owed(world.target, ["reflection"])
        await world.ledger.begin(world.target, values.intent(at, "r9", reflection=9))
        await uploads.put_object(world.store, f"systems/{values.SYSTEM}/uploads/{begun[0]}/reflection.duckdb")

    async def list_after_begin(prefix, **how):
        if not begun:
            await begin()
        async for item in listing(prefix, **how):
            is_linked = begun[0] in item.key
            yield replace(item, modified=values.NOON - timedelta(days=9 if is_linked else 0))

    monkeypatch.setattr(world.store, "list", list_after_begin)
    await prune_loop.after_sync(10)
    assert await uploads.uploads_in(world.store) == ([values.upload_id(0)], begun)


async def test_nothing_is_deleted_while_the_newest_upload_is_damaged(world):
    ids = await old_uploads(world)
    await world.upload()
    prune_loop = world.prune_loop()
    damaged = naming.object_key(values.SYSTEM, values.upload_id(0), "reflection.duckdb")
    (kept, metadata) = world.store._store.objects[damaged]
    world.store._store.objects[damaged] = kept.swapcase(), metadata
    with capture_logs() as logs:
        for _ in range(2):
            prune_loop._signal.set()
            await prune_loop.after_sync(10)
    assert (await uploads.uploads_in(world.store))[0] == [values.upload_id(0), *ids]
    (warning,) = warnings_in(await world.ledger.notes())
    assert (warning.code, values.upload_id(0) in warning.message) == ("pruning_held", True)
    assert [line["event"] for line in logs] == ["pruning_held"], "logged once"
    world.store._store.objects[damaged] = kept, metadata
    prune_loop._signal.set()
    await prune_loop.after_sync(10)
    assert (await uploads.uploads_in(world.store))[0] == [values.upload_id(0), ids[0]]
    assert warnings_in(await world.ledger.notes()) == ()


async def test_the_parts_in_the_ledger_exist_after_a_prune(world):
    await old_uploads(world)
    await world.upload()
    await world.upload(second=60)
    await world.prune_loop().after_sync(10)
    prune_loop = world.prune_loop()
    await world.upload(second=120)
    await prune_loop.after_sync(10)
    record = await world.ledger.record(world.target)
    keys = {item.key async for item in world.store.list(naming.uploads_prefix(values.SYSTEM))}
    named = {naming.upload_of(part.key) for known in record.databases.values() for part in known.parts}
    assert named == {record.newest_upload_id}
    assert naming.manifest_key(values.SYSTEM, record.newest_upload_id) in keys


async def test_a_missing_permission_to_delete_is_logged_once_and_deleting_retried_a_day_later(world):
    ids = await old_uploads(world)
    world.store.fail("delete", NotPermitted("AccessDenied", hint="allow s3:DeleteObject"), times=100)
    with capture_logs() as logs:
        for second in range(0, 180, 60):
            prune_loop = world.prune_loop()  # a new agent each time: the ledger stores what was reported
            await world.upload(second)
            await prune_loop.after_sync(10)
        assert len(world.store.keys("delete")) == 1
        (warning,) = [
            line for line in logs if line["event"] == "pruning_not_permitted" and line["log_level"] == "warning"
        ]
        assert '"Prefix": "systems/laptop-7/uploads/"' in warning["rule"]
        await world.clock.advance(25 * 3600)
        await world.upload(second=240)
        await prune_loop.after_sync(10)
        assert len(world.store.keys("delete")) == 2
        assert len([line for line in logs if line.get("log_level") == "warning"]) == 1
    assert set(ids) <= set((await uploads.uploads_in(world.store))[0])
    assert await world.pruned() == []
    world.store._faults.clear()
    await world.clock.advance(25 * 3600)
    await world.upload(second=300)
    await prune_loop.after_sync(10)
    assert len((await uploads.uploads_in(world.store))[0]) == 2
    assert (await world.ledger.notes())[NOTE] == ""


async def test_a_store_failure_is_reported_once_and_the_next_upload_prunes(world):
    await old_uploads(world)
    prune_loop = world.prune_loop()
    world.store.fail("list", StoreError("503", transient=True), times=2)
    with capture_logs() as logs:
        for second in (0, 60, 120):
            await world.upload(second)
            await prune_loop.after_sync(10)
    assert [line["log_level"] for line in logs if line["event"] == "pruning_failed"] == ["warning", "debug"]
    assert len((await uploads.uploads_in(world.store))[0]) == 2


@asynccontextmanager
async def running(prune_loop):
    task = asyncio.create_task(prune_loop.run(), name="prune")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_uploads_during_a_prune_cause_one_more_and_do_not_wait_for_it(world):
    await old_uploads(world)
    reached = world.store.stall("delete")
    async with running(world.prune_loop()) as task, asyncio.timeout(60):
        await world.upload()
        await reached.wait()
        await world.upload(second=60)
        await world.upload(second=120)
        assert not task.done()
    assert task.cancelled()
    assert len(world.store.keys("delete")) == 1


async def test_a_single_sync_waits_for_a_prune_only_up_to_a_timeout(world):
    await old_uploads(world)
    prune_loop = world.prune_loop()
    world.store.stall("delete")
    await world.upload()
    async with asyncio.timeout(60):
        await prune_loop.after_sync(0.01)
    world.store._faults.clear()
    await world.upload(second=60)
    await prune_loop.after_sync(10)
    assert len((await uploads.uploads_in(world.store))[0]) == 2


@pytest.fixture(params=["directory", "moto", "rclone"])
async def real(request, tmp_path):
    if request.param == "directory":
        made = DirectoryStore(tmp_path / "bucket")
    else:
        request.getfixturevalue("aws")
        server = request.getfixturevalue(request.param)
        made = S3Store(bucket=server.new_bucket(), endpoint=server.endpoint, region="auto")
    yield made
    await made.aclose()


async def test_many_keys_are_deleted_and_a_listing_has_modification_times(real):
    for number in range(12):
        await uploads.put_object(real, f"many/{number}/object")
    await uploads.put_object(real, "other")
    listed = [item async for item in real.list("many/")]
    assert all(abs(datetime.now(UTC) - item.modified) < timedelta(minutes=5) for item in listed)
    await real.delete([*(item.key for item in listed), "never/was"])
    assert [item.key async for item in real.list("")] == ["other"]
