"""What Akosha's own ingestion looks for lies beside an upload, or its refusal is logged: the upload stays whole."""

import hashlib
from dataclasses import replace

import pytest
import structlog

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.s3 import S3Store
from agent.application.sync.ingestion_markers import IngestionMarkers
from agent.domain import naming
from agent.domain.errors import CopyUnsupported, NoSuchObject, NotPermitted
from agent.domain.manifest import Manifest
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryStore
from tests.support.values import SYSTEM, manifest, memories_part

pytest_plugins = ["tests.support.servers.fixtures"]

BODY = b'{"conversations":[\n]}\n'
MIB = 2**20


def upload(second: int = 20) -> Manifest:
    part = replace(memories_part(second, reflection=None), size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest())
    return replace(manifest(second), memories=part)


def keys_of(of: Manifest) -> list[str]:
    """The markers in the order of their writing."""
    place = f"{naming.uploads_prefix(SYSTEM)}{of.upload_id}/"
    return [f"systems/{SYSTEM}/", f"{place}/memories.json", place]


async def put(store, key: str, data: bytes, metadata) -> None:
    async def body():
        yield data

    await store.put(key, body(), metadata=metadata, part_bytes=5 * MIB, progress=lambda _: None)


async def upload_to(store, of: Manifest, *, standstill_seconds: float = 30) -> list[str]:
    """Put an upload and its markers; return what was logged."""
    await put(store, of.memories.key, BODY, of.memories.metadata)
    await put(store, of.key, of.encode(), {})
    return await mark(store, of, standstill_seconds=standstill_seconds)


async def mark(store, of: Manifest, *, standstill_seconds: float = 30) -> list[str]:
    with structlog.testing.capture_logs() as logged:
        await IngestionMarkers(store, chunk_bytes=5 * MIB, standstill_seconds=standstill_seconds).write(of)
    return [line["event"] for line in logged]


async def content(store, key: str) -> bytes:
    return b"".join([piece async for piece in store.get(key)])


async def test_they_are_empty_but_for_the_copy_and_the_one_that_it_is_found_by_comes_last():
    kept = MemoryStore()
    store = FaultyStore(kept)
    assert await upload_to(store, upload()) == []
    system, copy, last = keys_of(upload())
    assert kept.objects[copy] == (BODY, upload().memories.metadata)
    assert (kept.objects[system], kept.objects[last]) == ((b"", {}), (b"", {}))
    assert [key for call, key in store.calls if call in ("put", "copy")][2:] == [system, copy, last]


async def test_a_store_that_cannot_copy_gets_the_bytes_once_more():
    kept = MemoryStore()
    store = FaultyStore(kept)
    store.fail("copy", CopyUnsupported("not here"))
    assert await upload_to(store, upload()) == []
    assert kept.objects[keys_of(upload())[1]] == (BODY, upload().memories.metadata)


async def test_without_memories_there_is_nothing_to_copy():
    kept = MemoryStore()
    without = replace(upload(), memories=None)
    await put(kept, without.key, without.encode(), {})
    assert await mark(kept, without) == []
    assert kept.objects.keys() == {without.key, *keys_of(without)[::2]}


async def test_where_one_is_refused_none_follows_and_it_costs_one_line():
    kept = MemoryStore()
    store = FaultyStore(kept)
    store.fail("copy", NotPermitted("403"))
    assert await upload_to(store, upload()) == ["ingestion_markers_refused"]
    assert keys_of(upload())[2] not in kept.objects


async def test_a_store_that_hangs_is_not_waited_for():
    store = FaultyStore(MemoryStore())
    store.stall("copy")
    store.stall("head", key="manifest.json")
    events = await upload_to(store, upload(), standstill_seconds=0.05)
    assert events == ["ingestion_markers_refused", "manifest_hidden"]


async def test_a_store_that_loses_sight_of_the_upload_gets_its_manifest_again():
    kept = MemoryStore()
    store = FaultyStore(kept)
    store.fail("head", NoSuchObject("gone"), key="manifest.json")
    assert await upload_to(store, upload()) == ["manifest_hidden"]
    assert store.keys("put")[-1] == upload().key


async def test_in_a_directory_there_can_be_no_such_keys(tmp_path):
    store = DirectoryStore(tmp_path / "bucket")
    assert await upload_to(store, upload()) == ["ingestion_markers_refused"]
    assert await content(store, upload().memories.key) == BODY


@pytest.fixture
def bucket_of(aws, monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)

    def make(server) -> S3Store:
        return S3Store(bucket=server.new_bucket(), endpoint=server.endpoint, region="auto")

    return make


async def test_in_s3_they_are_there_for_one_upload_after_the_other(bucket_of, moto):
    store = bucket_of(moto)
    try:
        for of in (upload(20), upload(30)):
            assert await upload_to(store, of) == []
            system, copy, last = keys_of(of)
            assert await content(store, copy) == BODY
            assert [(await store.head(key)).size for key in (system, last)] == [0, 0]
        found = {item.key async for item in store.list(f"systems/{SYSTEM}/")}
        assert {*keys_of(upload(20)), *keys_of(upload(30))} <= found
    finally:
        await store.aclose()


async def test_on_rclone_which_does_not_bear_them_both_uploads_can_be_read_nevertheless(bucket_of, rclone):
    store = bucket_of(rclone)
    try:
        for of in (upload(20), upload(30)):
            assert await upload_to(store, of) == ["ingestion_markers_refused", "manifest_hidden"]
        for of in (upload(20), upload(30)):
            assert await content(store, of.memories.key) == BODY
            assert await content(store, of.key) == of.encode()
    finally:
        await store.aclose()
