"""Markers for Akosha's own IngestionWorker: they are written, or their refusal is logged; the upload stays complete."""

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
    part = replace(
        memories_part(second, gzipped=False, reflection=None),
        raw_size=len(BODY),
        stored_size=len(BODY),
        sha256=hashlib.sha256(BODY).hexdigest(),
    )
    return replace(manifest(second), memories=part)


def keys_of(of: Manifest) -> list[str]:
    """Return the keys of the markers in the order in which they are written."""
    prefix = f"{naming.uploads_prefix(SYSTEM)}{of.upload_id}/"
    return [f"systems/{SYSTEM}/", f"{prefix}/memories.json", prefix]


async def put(store, key: str, data: bytes, metadata) -> None:
    async def body():
        yield data

    await store.put(key, body(), metadata=metadata, part_bytes=5 * MIB, progress=lambda _: None)


async def upload_to(store, of: Manifest, *, standstill_seconds: float = 30) -> list[str]:
    """Put an upload and its markers. Return the names of the log events."""
    await put(store, of.memories.key, BODY, of.memories.metadata)
    await put(store, of.key, of.encode(), {})
    return await mark(store, of, standstill_seconds=standstill_seconds)


async def mark(store, of: Manifest, *, standstill_seconds: float = 30) -> list[str]:
    with structlog.testing.capture_logs() as logged:
        await IngestionMarkers(store, chunk_bytes=5 * MIB, standstill_seconds=standstill_seconds).write(of)
    return [line["event"] for line in logged]


async def content(store, key: str) -> bytes:
    return b"".join([piece async for piece in store.get(key)])


async def test_markers_are_empty_except_the_copy_and_the_one_for_discovery_is_written_last():
    raw_store = MemoryStore()
    store = FaultyStore(raw_store)
    assert await upload_to(store, upload()) == []
    system, copy, last = keys_of(upload())
    assert raw_store.objects[copy] == (BODY, upload().memories.metadata)
    assert (raw_store.objects[system], raw_store.objects[last]) == ((b"", {}), (b"", {}))
    assert [key for call, key in store.calls if call in ("put", "copy")][2:] == [system, copy, last]


async def test_a_store_that_cannot_copy_gets_the_bytes_again():
    raw_store = MemoryStore()
    store = FaultyStore(raw_store)
    store.fail("copy", CopyUnsupported("not here"))
    assert await upload_to(store, upload()) == []
    assert raw_store.objects[keys_of(upload())[1]] == (BODY, upload().memories.metadata)


@pytest.mark.parametrize("memories", [None, memories_part(20, reflection=None)], ids=["none", "gzip"])
async def test_without_memories_that_akosha_can_read_there_is_nothing_to_copy(memories):
    raw_store = MemoryStore()
    without = replace(upload(), memories=memories)
    await put(raw_store, without.key, without.encode(), {})
    assert await mark(raw_store, without) == []
    assert raw_store.objects.keys() == {without.key, *keys_of(without)[::2]}


async def test_a_refused_marker_stops_the_others_and_is_logged_once():
    raw_store = MemoryStore()
    store = FaultyStore(raw_store)
    store.fail("copy", NotPermitted("403"))
    assert await upload_to(store, upload()) == ["ingestion_markers_refused"]
    assert keys_of(upload())[2] not in raw_store.objects


async def test_a_store_that_hangs_delays_the_markers_up_to_a_timeout():
    store = FaultyStore(MemoryStore())
    store.stall("copy")
    store.stall("head", key="manifest.json")
    events = await upload_to(store, upload(), standstill_seconds=0.05)
    assert events == ["ingestion_markers_refused", "manifest_hidden"]


async def test_a_store_that_hides_the_manifest_gets_it_again():
    raw_store = MemoryStore()
    store = FaultyStore(raw_store)
    store.fail("head", NoSuchObject("gone"), key="manifest.json")
    assert await upload_to(store, upload()) == ["manifest_hidden"]
    assert store.keys("put")[-1] == upload().key


async def test_a_directory_refuses_the_keys_of_markers(tmp_path):
    store = DirectoryStore(tmp_path / "bucket")
    assert await upload_to(store, upload()) == ["ingestion_markers_refused"]
    assert await content(store, upload().memories.key) == BODY


@pytest.fixture
def bucket_of(aws, monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)

    def make(server) -> S3Store:
        return S3Store(bucket=server.new_bucket(), endpoint=server.endpoint, region="auto")

    return make


async def test_s3_has_markers_for_each_upload(bucket_of, moto):
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


async def test_rclone_refuses_markers_and_both_uploads_can_be_read(bucket_of, rclone):
    store = bucket_of(rclone)
    try:
        for of in (upload(20), upload(30)):
            assert await upload_to(store, of) == ["ingestion_markers_refused", "manifest_hidden"]
        for of in (upload(20), upload(30)):
            assert await content(store, of.memories.key) == BODY
            assert await content(store, of.key) == of.encode()
    finally:
        await store.aclose()
