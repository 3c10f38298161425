"""Prunes that are killed, refused, disconnected or concurrent: no incomplete upload is listed; the next completes."""

import asyncio
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner
from agent.domain import naming
from agent.domain.errors import NotPermitted, StoreError
from agent.domain.retention import KeepRules
from tests.support import uploads, values, zygote
from tests.support.clock import ManualClock
from tests.support.servers.faulty_proxy import answer_with, refuse, reset, stall

pytest_plugins = ["tests.support.servers.fixtures"]

HERE = Path(__file__).parent
LAST_TWO = KeepRules(last=2, daily=0, weekly=0, monthly=0)
PREFIX = naming.uploads_prefix(values.SYSTEM)
KILLS = 30


def pruner_of(store, rules=LAST_TWO, *, now=None):
    return Pruner(Catalog(store, values.SYSTEM), rules, ManualClock(now or datetime.now(UTC)))


async def prune(store, rules=LAST_TWO, *, now=None):
    pruner = pruner_of(store, rules, now=now)
    return await pruner.carry_out(await pruner.plan({}), {})


def age(bucket, *, days=3):
    """Set the times of everything except the newest upload to `days` ago."""
    newest = max((bucket / PREFIX).iterdir())
    long_ago = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for path in bucket.rglob("*"):
        if path.is_file() and newest not in path.parents:
            os.utime(path, (long_ago, long_ago))


@pytest.mark.long
async def test_a_killed_prune_lists_no_incomplete_upload_and_the_next_completes(
    tmp_path,
):
    bucket, ids = tmp_path / "bucket", uploads.days(8)
    for upload in ids:
        await uploads.put(DirectoryStore(bucket), upload)
    age(bucket)
    command = [sys.executable, str(HERE / "killed_prune.py"), str(bucket), "6", str(KILLS)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    await asyncio.to_thread(zygote.run, command, check=True, env=environment)
    for number in range(KILLS):
        copy = bucket.with_name(f"{bucket.name}-{number}")
        complete, _ = await uploads.uploads_in(DirectoryStore(copy))
        assert complete[:2] == ids[:2]
        await prune(DirectoryStore(copy))
        assert await uploads.uploads_in(DirectoryStore(copy)) == (ids[:2], [])
        assert sorted(path.name for path in (copy / PREFIX).iterdir()) == ids[1::-1]
        assert {path.parent.name for path in (copy / ".akosha").rglob("*.json")} == set(ids[:2])


async def many(store, count=14):
    """Put `count` uploads, one a day. The default exceeds the number of objects that are deleted one by one."""
    ids = uploads.days(count)
    for upload in ids:
        await uploads.put(store, upload)
    return ids


@pytest.mark.parametrize("operation", ["the manifests", "the objects"])
async def test_a_cancelled_prune_lists_no_incomplete_upload(proxied, proxy, operation):
    store, reached = proxied(), asyncio.Event()
    ids = await many(store)
    if operation == "the objects":
        proxy.on("delete_objects", lambda _, forward: forward(), times=1)
    proxy.on("delete_objects", stall(reached), times=1)
    async with asyncio.timeout(60):
        task = asyncio.create_task(prune(store))
        await reached.wait()
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()
    complete, unfinished = await uploads.uploads_in(store)
    assert (complete, len(unfinished)) == ((ids, 0) if operation == "the manifests" else (ids[:2], 12))
    await prune(store)
    assert (await uploads.uploads_in(store))[0] == ids[:2]


async def test_a_lost_connection_is_transient_and_deleted_uploads_are_reported(proxied, proxy):
    store = proxied()
    ids = await many(store)
    proxy.on("delete_objects", lambda _, forward: forward(), times=1)
    proxy.on("delete_objects", reset(after=0))
    pruned = await prune(store)
    assert isinstance(pruned.error, StoreError)
    assert pruned.error.transient
    assert (pruned.upload_ids, pruned.objects) == (tuple(ids[2:]), 12)


@pytest.mark.parametrize("count", [3, 14], ids=["a few", "many"])
async def test_a_denied_deletion_deletes_nothing_and_names_the_permission(proxied, proxy, count):
    store = proxied()
    ids = await many(store, count)
    for operation in ("delete_object", "delete_objects"):
        proxy.on(operation, refuse(403, "AccessDenied"))
    pruned = await prune(store)
    assert isinstance(pruned.error, NotPermitted)
    assert "s3:DeleteObject" in str(pruned.error)
    assert (pruned.is_empty, await uploads.uploads_in(store)) == (True, (ids, []))
    assert proxy.count("delete_object") + proxy.count("delete_objects") == 1, "one request"


def deny_some(keys):
    """Delete all except some keys, which the response names, like AWS with a policy for these keys."""

    async def action(request, forward):
        text = (await request.read()).decode()
        kept = "".join(o for o in re.findall("<Object>.*?</Object>", text) if not any(key in o for key in keys))
        answer = await forward(body=f"<Delete><Quiet>true</Quiet>{kept}</Delete>".encode())
        denied = "".join(f"<Error><Key>{k}</Key><Code>AccessDenied</Code><Message>no</Message></Error>" for k in keys)
        answer.text = f"<?xml version='1.0'?><DeleteResult>{denied}</DeleteResult>"
        return answer

    return action


async def test_keys_denied_in_a_200_response_are_reported_and_kept(proxied, proxy):
    store = proxied()
    ids = await many(store)
    denied = [naming.manifest_key(values.SYSTEM, upload) for upload in ids[5:7]]
    proxy.on("delete_objects", deny_some(denied), times=1)
    pruned = await prune(store)
    assert isinstance(pruned.error, NotPermitted)
    assert denied[0] in str(pruned.error)
    complete, _ = await uploads.uploads_in(store)
    assert complete == [*ids[:2], *ids[5:7]]
    assert pruned.upload_ids == tuple(upload for upload in ids if upload not in complete)
    assert (await prune(store)).error is None
    assert (await uploads.uploads_in(store))[0] == ids[:2]


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "MissingContentMD5")])
async def test_a_store_without_batch_deletion_gets_single_deletions(proxied, proxy, status, code):
    store = proxied()
    ids = await many(store)
    proxy.on("delete_objects", refuse(status, code))
    assert (await prune(store)).error is None
    assert await uploads.uploads_in(store) == (ids[:2], [])
    assert proxy.count("delete_objects") == 1
    assert proxy.count("delete_object") == 12 * 4


async def test_a_batch_deletion_has_a_content_md5(proxied, proxy):
    store = proxied()
    await many(store)
    await prune(store)
    sent = [r.headers for r, name in zip(proxy.requests, proxy.seen, strict=True) if name == "delete_objects"]
    assert len(sent) == 2
    assert all("Content-MD5" in headers for headers in sent)
    assert not [name for headers in sent for name in headers if "checksum" in name.lower()]


async def test_a_multipart_upload_is_aborted_only_if_it_is_a_day_old(proxied, proxy, moto):
    store = proxied()
    bucket = store._address.bucket
    ids = await many(store, 3)
    key = naming.object_key(values.SYSTEM, uploads.upload_id(datetime.now(UTC)), "reflection.duckdb")
    await store._connection.call("create_multipart_upload", key)
    started = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}"
    proxy.on("list_multipart_uploads", answer_with(replace=("2010-11-10T20:48:33.000Z", started)))
    await prune(store)
    assert moto.pending_uploads(bucket) == 1
    pruned = await Aged(store).pruned(LAST_TWO, days=2)
    assert (moto.pending_uploads(bucket), pruned.leftovers) == (0, 1)
    assert await uploads.uploads_in(store) == (ids[:2], [])


class Aged:
    """A store that looks `days` older: its listings have no times, and the clock is ahead."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def list(self, prefix, *, start_after=""):
        async for item in self._store.list(prefix, start_after=start_after):
            yield values.replace(item, modified=None)

    async def pruned(self, rules, *, days):
        return await prune(self, rules, now=datetime.now(UTC) + timedelta(days=days))


async def test_a_listing_is_read_to_its_last_page(proxied, proxy, moto):
    store = proxied()
    direct = proxied(endpoint=moto.endpoint, bucket=store._address.bucket)
    ids = uploads.days(60)
    objects = {key: data for upload in ids for key, data in uploads.objects_of(upload).items()}
    await asyncio.gather(*(direct._connection.call("put_object", key, Body=data) for key, data in objects.items()))
    assert len(objects) == 240
    proxy.on("list_objects_v2", lambda _, forward: forward(query={"max-keys": "50"}))
    pruned = await prune(store)
    assert (len(pruned.upload_ids), pruned.objects, pruned.error) == (58, 232, None)
    assert await uploads.uploads_in(store) == (ids[:2], [])
    assert proxy.count("delete_objects") == 2
    times, kept, own = 60, 2 + 1, 2
    assert proxy.count("get_object") == times + kept + own, "the objects are newer than their upload IDs, as in a copy"


async def test_concurrent_prunes_keep_what_the_stricter_one_keeps(proxied):
    first = proxied()
    second = proxied(bucket=first._address.bucket)
    ids = await many(first)
    done = await asyncio.gather(prune(first), prune(second, KeepRules(last=4, daily=0, weekly=0, monthly=0)))
    assert [pruned.error for pruned in done] == [None, None]
    assert await uploads.uploads_in(first) == (ids[:2], [])
