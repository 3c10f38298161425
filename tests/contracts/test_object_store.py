"""The contract of `ObjectStore`: in memory, in a directory, S3 of moto, and S3 over TLS of rclone."""

import asyncio
import functools
import itertools
import random
import threading

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.s3 import S3Store
from agent.domain.errors import CopyUnsupported, NoSuchObject
from agent.ports import Creation, StoredObject
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryStore
from tests.support.put_journal import MemoryJournal

pytest_plugins = ["tests.support.servers.fixtures"]

MIB = 2**20
PART = 5 * MIB
KEY = "systems/mac/uploads/20260101_000000_mac/reflection.duckdb"
METADATA = {"sha256": "ab" * 32, "size": "12345", "compression": "gzip"}
STORES = ["memory", "faulty", "directory", "moto", "rclone_tls"]
CONTINUING = S3Store
"""The stores that continue an interrupted put."""


@pytest.fixture(params=STORES)
async def store(request, tmp_path):
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "faulty":
        made = FaultyStore(MemoryStore())
    elif request.param == "directory":
        made = DirectoryStore(tmp_path / "bucket")
    else:
        request.getfixturevalue("aws")
        server = request.getfixturevalue(request.param)
        made = S3Store(
            bucket=server.new_bucket(),
            endpoint=server.endpoint,
            region="auto",
            verify=str(server.ca) if server.ca else None,
        )
    yield made
    await made.aclose()


@functools.cache
def data_of(size, seed=1):
    return random.Random(seed).randbytes(size)


async def pieces_of(data, piece=700_001):
    for start in range(0, len(data), piece):
        yield data[start : start + piece]


async def put(store, key, data, *, metadata=METADATA, progress=lambda _: None, piece=700_001):
    return await store.put(key, pieces_of(data, piece), metadata=metadata, part_bytes=PART, progress=progress)


async def fetch(store, key):
    return b"".join([piece async for piece in store.get(key)])


async def keys(store, prefix="", **options):
    return [item.key async for item in store.list(prefix, **options)]


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 2 * PART])
async def test_a_stored_object_has_its_bytes_size_and_metadata(store, size):
    data = data_of(size)
    assert await put(store, KEY, data) == StoredObject(KEY, size, METADATA)
    assert await fetch(store, KEY) == data
    found = await store.head(KEY)
    assert (found.key, found.size) == (KEY, size)
    assert {name: found.metadata.get(name) for name in METADATA} == METADATA


@pytest.mark.parametrize("size", [65_536, PART + 1])
async def test_the_etag_is_the_same_in_every_response_and_differs_for_other_bytes(store, size):
    data = data_of(size)
    stored = (await put(store, KEY, data)).etag
    inspected = (await store.inspect(KEY)).etag
    (listed,) = [item.etag async for item in store.list(KEY)]
    assert inspected
    assert (await store.head(KEY)).etag in ("", inspected)
    assert listed in ("", inspected)
    assert stored == inspected
    copied = await store.copy(KEY, f"{KEY}2", expected=StoredObject(KEY, size, METADATA, etag=inspected))
    assert copied.etag == (await store.inspect(f"{KEY}2")).etag
    changed = bytearray(data)
    changed[size // 2] ^= 1
    await put(store, KEY, bytes(changed))
    assert (await store.inspect(KEY)).etag != inspected


async def test_a_source_with_another_etag_is_not_copied(store):
    stored = await put(store, KEY, b"as it was put")
    await put(store, KEY, b"as it was Put")
    with pytest.raises(CopyUnsupported):
        await store.copy(KEY, f"{KEY}2", expected=StoredObject(KEY, stored.size, METADATA, etag=stored.etag))
    assert await keys(store) == [KEY]


async def test_pieces_may_be_small_or_larger_than_a_part(store):
    data = data_of(PART + 300_000)
    await put(store, KEY, data, piece=len(data))
    assert await fetch(store, KEY) == data
    small = data_of(100_000, seed=2)
    await put(store, "small", small, piece=33)
    assert await fetch(store, "small") == small


async def test_a_put_replaces_the_object(store):
    await put(store, KEY, b"old and longer", metadata={"sha256": "old"})
    await put(store, KEY, b"new", metadata={"sha256": "new"})
    assert await fetch(store, KEY) == b"new"
    assert (await store.head(KEY)).metadata["sha256"] == "new"
    assert await keys(store) == [KEY]


@pytest.mark.parametrize("size", [10, PART + 5])
async def test_progress_is_reported_on_the_event_loop_and_adds_up_to_the_size(store, size):
    reported, threads = [], set()

    def progress(count):
        reported.append(count)
        threads.add(threading.current_thread())

    await put(store, KEY, data_of(size), progress=progress)
    assert sum(reported) == size
    assert min(reported) >= 0
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("size", [100, 2 * PART])
async def test_a_put_with_a_failing_body_keeps_the_old_object(store, size):
    class BodyError(Exception):
        pass

    async def failing():
        async for piece in pieces_of(data_of(size)):
            yield piece
        raise BodyError

    await put(store, KEY, b"before")
    for key in (KEY, "other"):
        with pytest.raises(BodyError):
            await store.put(key, failing(), metadata={}, part_bytes=PART, progress=lambda _: None)
    assert await fetch(store, KEY) == b"before"
    assert await keys(store) == [KEY]
    assert await store.sweep("") == 0


@pytest.mark.parametrize("size", [100, 2 * PART])
async def test_a_cancelled_put_keeps_the_old_object(store, size):
    reached = asyncio.Event()

    async def endless():
        async for piece in pieces_of(data_of(size)):
            yield piece
        reached.set()
        await asyncio.Event().wait()

    await put(store, KEY, b"before")
    for key in (KEY, "other"):
        reached.clear()
        task = asyncio.create_task(store.put(key, endless(), metadata={}, part_bytes=PART, progress=lambda _: None))
        await asyncio.wait_for(reached.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await fetch(store, KEY) == b"before"
    assert await keys(store) == [KEY]
    assert await store.sweep("") == 0


async def interrupt(store, key, data, journal, *, metadata=METADATA):
    """Cancel a put of `data` before its last byte; a store that continues puts has all parts but the last by then."""
    sent = asyncio.Event()

    async def body():
        async for piece in pieces_of(data[:-1]):
            yield piece
        sent.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        store.put(key, body(), metadata=metadata, part_bytes=PART, progress=lambda _: None, journal=journal)
    )
    await asyncio.wait_for(sent.wait(), 60)
    if isinstance(store, CONTINUING):
        await journal.wait_for((len(data) - 1) // PART)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def put_again(store, key, data, journal, *, metadata=METADATA, part_bytes=PART):
    """Return the stored object and the number of bytes sent. The rest is reported as kept."""
    moved, kept = [], []
    stored = await store.put(
        key,
        pieces_of(data),
        metadata=metadata,
        part_bytes=part_bytes,
        progress=moved.append,
        kept=kept.append,
        journal=journal,
    )
    assert sum(moved) + sum(kept) == len(data)
    return stored, sum(moved)


async def test_an_interrupted_put_continues_and_sends_only_what_the_store_lacks(store):
    data, journal = data_of(3 * PART + 99), MemoryJournal(KEY)
    await put(store, KEY, b"before")
    for _ in range(2):  # interrupted again, the put keeps what the store has
        await interrupt(store, KEY, data, journal)
        assert await fetch(store, KEY) == b"before"
    stored, sent = await put_again(store, KEY, data, journal)
    assert sent == (99 if isinstance(store, CONTINUING) else len(data))
    assert journal.calls.count("add") == (4 if isinstance(store, CONTINUING) else 0)
    assert await fetch(store, KEY) == data
    assert stored.etag == (await put(store, "whole", data)).etag
    assert {name: (await store.head(KEY)).metadata.get(name) for name in METADATA} == METADATA
    assert journal.put is None
    assert await store.sweep("") == 0


async def test_a_put_with_a_journal_is_recorded_while_it_is_open(store):
    data, journal = data_of(2 * PART), MemoryJournal(KEY)
    await put_again(store, KEY, data, journal)
    small = MemoryJournal("small")
    await put_again(store, "small", b"x", small)
    assert journal.calls == (["begin", "add", "add", "clear"] if isinstance(store, CONTINUING) else [])
    assert small.calls == []


@pytest.mark.parametrize("other", [{"metadata": {"sha256": "cd" * 32}}, {"part_bytes": PART + 1}], ids=str)
async def test_a_put_with_other_metadata_or_part_size_does_not_continue(store, other):
    data, journal = data_of(3 * PART), MemoryJournal(KEY)
    await interrupt(store, KEY, data, journal)
    _, sent = await put_again(store, KEY, data, journal, **other)
    assert sent == len(data)
    assert await fetch(store, KEY) == data
    assert journal.put is None
    assert await store.sweep("") == 0


async def test_a_put_with_a_failing_body_keeps_no_parts_for_a_later_one(store):
    class BodyError(Exception):
        pass

    async def failing():
        async for piece in pieces_of(data_of(2 * PART)):
            yield piece
        raise BodyError

    journal = MemoryJournal(KEY)
    with pytest.raises(BodyError):
        await store.put(KEY, failing(), metadata={}, part_bytes=PART, progress=lambda _: None, journal=journal)
    assert journal.put is None
    assert await store.sweep("") == 0


async def test_a_sweep_spares_the_open_puts_that_it_is_given_and_removes_others(store):
    data = data_of(3 * PART)
    journals = [MemoryJournal(f"systems/mac/{name}") for name in "abc"]
    for journal in journals:
        await interrupt(store, journal.key, data, journal)
    spared = [journal.put.put_id for journal in journals[:2] if journal.put]
    assert await store.sweep("systems/", spared=spared) == (1 if isinstance(store, CONTINUING) else 0)
    assert await store.sweep("systems/", spared=spared) == 0
    _, sent = await put_again(store, journals[0].key, data, journals[0])
    assert sent == (PART if isinstance(store, CONTINUING) else len(data))
    _, sent = await put_again(store, journals[2].key, data, journals[2])
    assert sent == len(data)
    assert await fetch(store, journals[2].key) == data


async def test_a_discarded_put_leaves_nothing_and_may_be_discarded_again(store):
    data, journal = data_of(3 * PART), MemoryJournal(KEY)
    await interrupt(store, KEY, data, journal)
    for _ in range(2 if journal.put else 0):
        await store.discard(journal.put)
    assert await store.sweep("") == 0
    _, sent = await put_again(store, KEY, data, journal)
    assert sent == len(data)
    assert await store.sweep("") == 0


async def test_a_missing_object_raises_no_such_object(store):
    await put(store, KEY, b"x")
    expected = StoredObject("missing", 1, {})
    for call in (store.head("missing"), fetch(store, "missing"), store.copy("missing", "to", expected=expected)):
        with pytest.raises(NoSuchObject, match="missing"):
            await call


async def test_a_listing_is_in_key_order_within_its_prefix_and_after_its_start(store):
    given = ["systems/b/x", "systems/a/uploads/2/m", "systems/a/uploads/1/m", "systems/a/uploads/1/d", "systems/ab/x"]
    for key in given:
        await put(store, key, key.encode())
    assert await keys(store) == sorted(given)
    assert await keys(store, "systems/a/") == [
        "systems/a/uploads/1/d",
        "systems/a/uploads/1/m",
        "systems/a/uploads/2/m",
    ]
    assert await keys(store, "systems/a/uploads/1/", start_after="systems/a/uploads/1/d") == ["systems/a/uploads/1/m"]
    assert await keys(store, "systems/a/", start_after="systems/a/uploads/1/x") == ["systems/a/uploads/2/m"]
    assert await keys(store, start_after="systems/b/x") == []
    assert await keys(store, "systems/c/") == []
    assert [item async for item in store.list("systems/b/")] == [StoredObject("systems/b/x", 11)]


async def test_folders_are_the_names_between_the_prefix_and_the_next_slash(store):
    for key in ("top", "systems/b/x", "systems/a/uploads/2/m", "systems/a/uploads/1/m", "systems/a-1/x", "systems/x"):
        await put(store, key, key.encode())

    async def folders(*prefix, **start):
        return [name async for name in store.folders(*prefix, **start)]

    assert await folders("systems/") == ["a-1", "a", "b"]  # in the order of their keys: - is before /
    assert await folders("systems/a/uploads/") == ["1", "2"]
    assert await folders("systems/a/uploads/", start="2") == ["2"]
    assert await folders("systems/", start="b0") == []
    assert await folders("systems/c/") == await folders("systems/b/") == []
    assert await folders("") == ["systems"]


async def test_delete_removes_objects_and_ignores_missing_ones(store):
    for key in ("a/1", "a/2", "b"):
        await put(store, key, b"x")
    await store.delete(["a/1", "b", "never/was"])
    await store.delete([])
    assert await keys(store) == ["a/2"]
    with pytest.raises(NoSuchObject):
        await store.head("b")


async def test_a_copy_has_the_bytes_and_metadata_of_its_source(store):
    data = data_of(PART + 99)
    source = await put(store, KEY, data)
    target = KEY.replace("20260101", "20260102")
    copied = await store.copy(KEY, target, expected=source)
    assert (copied.key, copied.size) == (target, source.size)
    await store.delete([KEY])
    assert await fetch(store, target) == data
    found = await store.head(target)
    assert {name: found.metadata.get(name) for name in METADATA} == METADATA


async def chain(store, count, data):
    """Put an object in an upload, and copy it from each upload to the next; return the keys."""
    stored = await put(store, KEY, data)
    keys = [KEY, *(KEY.replace("20260101", f"202602{day:02}") for day in range(1, count))]
    for source, key in itertools.pairwise(keys):
        stored = await store.copy(source, key, expected=StoredObject(source, len(data), METADATA, etag=stored.etag))
    return keys


async def test_copies_of_copies_are_the_same_objects_and_each_can_be_deleted_alone(store):
    data = data_of(200_000)
    rest = await chain(store, 6, data)
    tags = {(await store.inspect(key)).etag for key in rest}
    assert len(tags) == 1
    for deleted in (rest[0], rest[5], rest[2]):
        await store.delete([deleted])
        rest.remove(deleted)
        assert await keys(store) == rest
        for key in rest:
            assert await fetch(store, key) == data
            assert {name: (await store.head(key)).metadata.get(name) for name in METADATA} == METADATA
            assert (await store.inspect(key)).etag in tags


@pytest.mark.parametrize("replaced", [0, 1, 3])
async def test_a_put_or_create_over_one_of_the_copies_leaves_the_others(store, replaced):
    data = data_of(200_000)
    copies = await chain(store, 4, data)
    await put(store, copies[replaced], b"other")
    await store.create(copies[replaced - 1], b"another", replace=True)
    found = [await fetch(store, key) for key in copies]
    assert found.count(data) == 2
    assert (found[replaced], found[replaced - 1]) == (b"other", b"another")


async def test_a_copy_replaces_an_object_also_if_it_is_a_copy_of_the_same(store):
    stored = await put(store, KEY, b"bytes")
    target = KEY.replace("20260101", "20260102")
    await put(store, target, b"left by an attempt", metadata={"sha256": "0"})
    for _ in range(3):
        await store.copy(KEY, target, expected=StoredObject(KEY, 5, METADATA, etag=stored.etag))
        assert await fetch(store, target) == b"bytes"
        assert {name: (await store.head(target)).metadata.get(name) for name in METADATA} == METADATA
    assert await keys(store) == [KEY, target]
    assert await store.sweep("") == 0


@pytest.mark.parametrize(
    "expected", [StoredObject(KEY, 5, {**METADATA, "sha256": "cd" * 32}), StoredObject(KEY, 6, METADATA)]
)
async def test_an_unexpected_source_is_not_copied(store, expected):
    await put(store, KEY, b"other")
    with pytest.raises(CopyUnsupported):
        await store.copy(KEY, "copy", expected=expected)
    assert await keys(store) == [KEY]


async def test_a_store_is_available_and_has_a_location(store):
    await put(store, "a", b"x")
    assert await store.is_available()
    assert store.location
    assert "canary" not in store.location


async def test_concurrent_puts_do_not_mix(store):
    bodies = {f"systems/s{n}/file": data_of(200_000 + n, seed=n) for n in range(6)}
    await asyncio.gather(*(put(store, key, data) for key, data in bodies.items()))
    assert {key: await fetch(store, key) for key in bodies} == bodies


async def test_closing_a_store_twice_is_not_an_error(store):
    await store.aclose()
    await store.aclose()


async def test_create_makes_a_new_object(store):
    assert await store.create("systems/mac/owner.json", b"first") is Creation.CREATED
    assert await fetch(store, "systems/mac/owner.json") == b"first"
    found = await store.head("systems/mac/owner.json")
    assert (found.size, found.metadata.get("sha256")) == (5, None)
    assert await keys(store) == ["systems/mac/owner.json"]
    assert await store.sweep("") == 0


async def test_create_keeps_an_existing_object(store):
    await put(store, "owner.json", b"before")
    assert await store.create("owner.json", b"after") is Creation.EXISTS
    assert await fetch(store, "owner.json") == b"before"
    assert await keys(store) == ["owner.json"]


async def test_create_with_replace_overwrites_and_is_unproven(store):
    await put(store, "owner.json", b"before")
    assert await store.create("owner.json", b"after", replace=True) is Creation.UNPROVEN
    assert await fetch(store, "owner.json") == b"after"
    assert (await store.head("owner.json")).metadata.get("sha256") is None
    assert await store.create("other.json", b"new", replace=True) is Creation.UNPROVEN
    assert await fetch(store, "other.json") == b"new"


async def test_of_concurrent_creates_at_most_one_stores_its_object_and_reports_created(store):
    bodies = [f"claim {number}".encode() * 9 for number in range(6)]
    results = await asyncio.gather(*(store.create("owner.json", body) for body in bodies), return_exceptions=True)
    created = [body for body, result in zip(bodies, results, strict=True) if result is Creation.CREATED]
    assert len(created) <= 1
    assert [await fetch(store, "owner.json")] == created if created else await keys(store) == []
