"""Uploads that are killed, cut or stalled while a large file is sent, and what the next sync sends."""

import asyncio
import gzip
import threading
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from typing import ClassVar

import pytest
from structlog.testing import capture_logs

from agent.adapters.gzip_members import GzipMembers
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner, spared_by
from agent.application.sync import subscriber
from agent.bootstrap import methods
from agent.domain import naming
from agent.domain.events import SyncFailed, SyncSucceeded
from agent.domain.retention import KeepRules
from tests.integration.test_cloud_sync import IDENTITY, PREFIX, Rig
from tests.support import upload_contents
from tests.support.machine import Machine
from tests.support.servers.bucket import Bucket
from tests.support.servers.faulty_proxy import refuse, reset, stall
from tests.support.servers.s3 import aws_environment
from tests.support.servers.threaded_proxy import running_faulty_proxy
from tests.support.session_buddy import REFLECTION, Checker, Writer

pytest_plugins = ["tests.support.servers.fixtures"]

MIB = 2**20
MEMBER = MIB
"""Uncompressed bytes of a gzip member in this process, in which progress is counted. Two parts have one."""
PART = MIB
CONCURRENT = 3
"""Parts in transit at the same time."""

NOISE = "CREATE TABLE noise AS SELECT random() AS n FROM range({})"
"""A table of eight bytes a row, which do not compress."""


class PartLog:
    """Records the requests for `upload_part`: `sent` has the number and the size of each part."""

    def __init__(self, proxy):
        self.sent = []
        self._stored, self._changed = set(), asyncio.Condition()
        self._last, self._then = None, None
        proxy.on("upload_part", self._act)

    def stop_after(self, last, then):
        """Pass on the parts up to this number. Once the store has these, treat the others like `then`."""
        self._last, self._then = last, then

    def pass_all(self):
        self._last = None

    async def _act(self, request, forward):
        number, last, then = int(request.query["partNumber"]), self._last, self._then
        self.sent.append((number, int(request.headers["Content-Length"])))
        async with self._changed:
            if last is not None and number > last:
                await self._changed.wait_for(lambda: {*range(1, last + 1)} <= self._stored)
        if last is not None and number > last:
            return await then(request, forward)
        answer = await forward()
        async with self._changed:
            self._stored.add(number)
            self._changed.notify_all()
        return answer

    @property
    def bytes(self):
        return sum(size for _, size in self.sent)

    def numbers(self):
        """Return the numbers of the parts that were requested, and forget the requests."""
        numbers, self.sent = [number for number, _ in self.sent], []
        return numbers


# ------------------------------------------------------------------------------------------------- in this process


@pytest.fixture
def rig(tmp_path, monkeypatch, proxied, proxy, moto):
    rig = Rig(tmp_path, monkeypatch)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    monkeypatch.setattr(methods, "GzipMembers", lambda: GzipMembers(member_bytes=MEMBER))
    rig.settings |= {"max_retries": 0, "upload_timeout_seconds": 30, "chunk_size_mb": PART // MIB}
    rig.s3_bucket = moto.new_bucket()
    rig.store = proxied(bucket=rig.s3_bucket)
    rig.parts = PartLog(proxy)
    rig.change(NOISE.format(5 * PART // 8))
    return rig


@asynccontextmanager
async def ledger_of(rig):
    """Open the ledger; yield it and the target."""
    home = rig.home()
    ledger = await home.open_ledger()
    try:
        yield ledger, home.targets(IDENTITY)["cloud"]
    finally:
        await ledger.aclose()


async def open_puts(rig):
    async with ledger_of(rig) as (ledger, target):
        return [put.put_id for put in await ledger.open_puts(target)]


async def interrupted(rig, action=None):
    """Sync until the store has two parts, and return the ID of the unfinished upload."""
    rig.parts.stop_after(2, action or reset(after=0))
    assert isinstance(await rig.sync(), SyncFailed)
    rig.parts.pass_all()
    assert {1, 2} <= {*rig.parts.numbers()}
    record = await rig.record()
    return record.intent.upload_id


async def manifests(rig):
    keys = [item.key async for item in rig.store.list(PREFIX) if item.key.endswith("/manifest.json")]
    return [await Catalog(rig.store, "laptop").manifest(naming.upload_of(key)) for key in keys]


async def synced(rig):
    """Sync with success; return the result and the log lines."""
    with capture_logs() as logs:
        result = await rig.sync()
    assert isinstance(result, SyncSucceeded), result
    return result, logs


def events(logs, *names):
    return [line["event"] for line in logs if line["event"] in names]


class CountedProgress(subscriber.ProgressReporter):
    """Counts the bytes of the last phase: its total, what was moved, and what the store had."""

    last: ClassVar[dict[str, int]] = {}

    def phase(self, name, total_bytes):
        super().phase(name, total_bytes)
        self.last.update(total=total_bytes, moved=0, kept=0)

    def moved(self, count):
        super().moved(count)
        self.last["moved"] += count

    def kept(self, count):
        super().kept(count)
        self.last["kept"] += count
        assert self.activity().done_bytes == self.last["moved"] + self.last["kept"]


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_after_a_cut_or_a_stall_the_next_sync_sends_only_what_is_missing(rig, moto, monkeypatch, how):
    monkeypatch.setattr(subscriber, "ProgressReporter", CountedProgress)
    if how == "stall":
        rig.settings["upload_timeout_seconds"] = 2
    unfinished = await interrupted(rig, stall(threading.Event()) if how == "stall" else None)
    rig.settings["upload_timeout_seconds"] = 30
    assert moto.pending_uploads(rig.s3_bucket) == 1
    result, logs = await synced(rig)
    assert result.upload_id == unfinished
    assert events(logs, "put_resumed", "parts_sent_again", "upload_abandoned") == ["put_resumed"]
    assert not {1, 2} & {*rig.parts.numbers()}
    (manifest,) = await manifests(rig)
    stored = {part.name: part.stored_size for part in manifest.parts}
    assert manifest.bytes_sent <= sum(stored.values()) - 2 * PART
    progress = CountedProgress.last
    assert progress["kept"] >= MEMBER
    assert progress["moved"] + progress["kept"] == progress["total"]
    assert moto.pending_uploads(rig.s3_bucket) == 0
    assert await open_puts(rig) == []


async def test_parts_of_a_file_that_is_the_same_are_not_sent_again_although_the_wal_has_grown(rig, moto):
    unfinished = await interrupted(rig)
    with Writer(rig.data, "--paused") as writer:
        await asyncio.to_thread(writer.run, "commit 2")
        result, logs = await synced(rig)
    assert result.upload_id == unfinished
    assert events(logs, "put_resumed", "upload_continued", "upload_abandoned") == ["upload_continued", "put_resumed"]
    assert not {1, 2} & {*rig.parts.numbers()}
    (manifest,) = await manifests(rig)
    for part in manifest.parts:
        stored = b"".join([piece async for piece in rig.store.get(part.key)])
        assert sha256(gzip.decompress(stored)).hexdigest() == part.sha256
    assert f"{REFLECTION}.wal" in {part.name for part in manifest.parts}
    assert moto.pending_uploads(rig.s3_bucket) == 0


async def test_the_parts_of_an_abandoned_upload_are_removed(rig, proxy, moto):
    """Also if the agent may not list unfinished uploads: the ledger knows them."""
    proxy.on("list_multipart_uploads", refuse(403, "AccessDenied"))
    unfinished = await interrupted(rig)
    rig.commit()
    rig.commit("knowledge_graph")
    result, logs = await synced(rig)
    assert result.upload_id != unfinished
    assert events(logs, "put_resumed", "upload_abandoned") == ["upload_abandoned"]
    assert {1, 2} <= {*rig.parts.numbers()}
    assert moto.pending_uploads(rig.s3_bucket) == 0


async def test_a_sweep_spares_the_open_put_and_removes_other_parts_of_the_upload(rig, moto):
    """An upload of another key, or a second one of the same key, is left by a kill before it was recorded."""
    unfinished = await interrupted(rig)
    key = naming.object_key("laptop", unfinished, "reflection.duckdb")
    for other in (key, f"{key}.wal", naming.object_key("laptop", "20260101_000000_laptop", "reflection.duckdb")):
        await rig.store._connection.call("create_multipart_upload", other)
    assert moto.pending_uploads(rig.s3_bucket) == 4
    _, logs = await synced(rig)
    assert [line["count"] for line in logs if line["event"] == "leftovers_removed"] == [3]
    assert not {1, 2} & {*rig.parts.numbers()}
    assert moto.pending_uploads(rig.s3_bucket) == 0


async def test_a_prune_spares_the_open_put(rig, moto):
    """moto says that every upload was started in 2010."""
    await interrupted(rig)
    await rig.store._connection.call("create_multipart_upload", f"{PREFIX}20260101_000000_laptop/reflection.duckdb")
    pruner = Pruner(Catalog(rig.store, "laptop"), KeepRules(last=1, daily=0, weekly=0, monthly=0), rig.home().clock)
    spared = spared_by(await rig.record())
    pruned = await pruner.carry_out(await pruner.plan(spared), spared, open_puts=await open_puts(rig))
    assert (pruned.leftovers, moto.pending_uploads(rig.s3_bucket)) == (1, 1)
    _, logs = await synced(rig)
    assert events(logs, "put_resumed") == ["put_resumed"]


async def test_an_open_put_that_the_upload_no_longer_needs_is_removed_before_the_manifest(rig, moto):
    unfinished = await interrupted(rig)
    key = naming.memories_key("laptop", unfinished, gzipped=True)
    response = await rig.store._connection.call("create_multipart_upload", key)
    async with ledger_of(rig) as (ledger, target):
        await ledger.put_journal(target, key).begin(response["UploadId"], "parameters")
    assert moto.pending_uploads(rig.s3_bucket) == 2
    await synced(rig)
    assert moto.pending_uploads(rig.s3_bucket) == 0


async def test_a_new_target_removes_the_parts_of_the_unfinished_upload(rig, proxy, moto):
    await interrupted(rig)
    for key in [item.key async for item in rig.store.list("")]:
        await rig.store.delete([key])  # owner.json among them: the bucket seems replaced
    result = await rig.sync(new_target=True)
    assert isinstance(result, SyncSucceeded)
    assert moto.pending_uploads(rig.s3_bucket) == 0


async def test_a_lost_ledger_sends_everything_and_removes_the_parts_after_a_day(rig, moto):
    await interrupted(rig)
    for path in (rig.tmp_path / "state").glob("ledger*"):
        path.unlink()
    _, logs = await synced(rig)
    assert events(logs, "put_resumed", "leftovers_removed") == ["leftovers_removed"]
    assert {1, 2} <= {*rig.parts.numbers()}
    assert moto.pending_uploads(rig.s3_bucket) == 0


# ---------------------------------------------------------------------------------------------------- as processes


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path, max_retries=0, chunk_size_mb=PART // MIB)
    machine.environ |= aws_environment()
    machine.write(commits=20, entities=5)
    with _database(machine) as base:
        base.execute(NOISE.format(7 * PART // 8))
    return machine


@contextmanager
def _database(machine):
    import duckdb

    with duckdb.connect(str(machine.data / REFLECTION)) as base:
        yield base


@pytest.fixture(params=["moto"])
def bucket(request):
    return Bucket(request.getfixturevalue(request.param))


@pytest.fixture
def proxy_of_machine(machine, bucket):
    with running_faulty_proxy(bucket.server.endpoint) as proxy:
        machine.set(cloud_endpoint=proxy.url, cloud_bucket=bucket.name)
        yield proxy


def kill_after(machine, parts, last):
    """Kill a sync once the store has the parts up to `last`, and the next one is being sent."""
    reached = threading.Event()
    parts.stop_after(last, stall(reached, at=100_000))
    with machine.started("sync") as syncing:
        assert reached.wait(180), "".join(syncing.log.raw)
        syncing.process.kill()
        syncing.process.wait(60)
    parts.pass_all()


@pytest.mark.long
@pytest.mark.parametrize("bucket", ["moto", "rclone"], indirect=True)
def test_killed_uploads_send_each_part_once_except_those_in_transit(machine, bucket, proxy_of_machine, tmp_path):
    parts = PartLog(proxy_of_machine)
    kills = (2, 4)
    for last in kills:
        kill_after(machine, parts, last)
        assert bucket.pending_uploads == 1
    machine.sync()
    (manifest,) = bucket.manifests
    (sent,) = (part for part in manifest["parts"] if part["name"] == REFLECTION)
    assert sent["stored_size"] > 6 * PART
    assert parts.bytes <= sent["stored_size"] + len(kills) * CONCURRENT * PART
    requested = [number for number, _ in parts.sent]
    assert all(requested.count(number) == 1 for number in (1, 2))
    assert manifest["bytes_sent"] <= sum(part["stored_size"] for part in manifest["parts"]) - 4 * PART + PART // 5
    assert bucket.pending_uploads == 0
    with Checker() as checker:
        folder = upload_contents.unpack(manifest, bucket.object, tmp_path / "arrived")
        assert checker.check(folder / REFLECTION).last == 19
    assert machine.call("verify", "--deep").code == 0


@pytest.mark.long
def test_a_killed_upload_of_databases_that_have_changed_leaves_no_parts(machine, bucket, proxy_of_machine):
    parts = PartLog(proxy_of_machine)
    kill_after(machine, parts, 2)
    with _database(machine) as base:
        base.execute("CREATE TABLE extra AS SELECT 1")
    machine.write(entities=6)
    assert '"event": "upload_abandoned"' in machine.call("sync", "-v").err
    assert len(bucket.manifests) == 1
    assert bucket.pending_uploads == 0
    assert {naming.upload_of(key) for key in bucket.keys} == {bucket.manifests[0]["upload_id"]}


@pytest.mark.long
def test_a_killed_upload_goes_on_although_the_wal_has_grown(machine, bucket, proxy_of_machine):
    parts = PartLog(proxy_of_machine)
    kill_after(machine, parts, 2)
    with Writer(machine.data, "--paused") as writer:
        writer.run("commit 3")
        writer.crash()
    parts.numbers()
    machine.sync()
    assert not {1, 2} & {*parts.numbers()}
    (manifest,) = bucket.manifests
    assert {naming.upload_of(key) for key in bucket.keys} == {manifest["upload_id"]}
    assert f"{REFLECTION}.wal" in manifest["files"]
    assert bucket.pending_uploads == 0
    assert machine.call("verify", "--deep").code == 0


@pytest.mark.long
def test_a_killed_upload_whose_parts_may_not_be_listed_is_sent_again(machine, bucket, proxy_of_machine):
    parts = PartLog(proxy_of_machine)
    kill_after(machine, parts, 2)
    proxy_of_machine.on("list_parts", refuse(403, "AccessDenied"))
    done = machine.call("sync", "--json", "-v")
    assert done.code == 0
    assert "allow s3:ListMultipartUploadParts" in done.err
    (manifest,) = bucket.manifests
    assert manifest["bytes_sent"] >= max(part["stored_size"] for part in manifest["parts"])
    assert bucket.pending_uploads == 0
